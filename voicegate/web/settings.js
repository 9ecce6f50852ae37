// The settings form. Kept in sessionStorage: gone with the tab, never sent anywhere but to this server.

const KEY = "voicegate.settings";

export class Settings {
  #form;
  #toggle;

  constructor(form, toggle, onsave) {
    this.#form = form;
    this.#toggle = toggle;
    this.#restore();
    toggle.addEventListener("click", () => this.show(form.hidden));
    form.addEventListener("change", () => this.#store());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#store();
      this.show(false);
      toggle.focus();
      onsave();
    });
  }

  /** {apiKey, model, echoCancellation, noiseSuppression, autoGainControl} as they stand in the form. */
  get values() {
    const values = {};
    for (const field of this.#fields()) values[field.name] = field.type === "checkbox" ? field.checked : field.value.trim();
    return values;
  }

  show(shown, fieldName = null) {
    this.#form.hidden = !shown;
    this.#toggle.ariaExpanded = String(shown);
    if (shown && fieldName) this.#form.elements[fieldName].focus();
  }

  #fields() {
    return [...this.#form.elements].filter((field) => field.name);
  }

  #store() {
    try {
      sessionStorage.setItem(KEY, JSON.stringify(this.values));
    } catch {
      // Storage is switched off: the form itself still holds the values.
    }
  }

  #restore() {
    let kept = {};
    try {
      kept = JSON.parse(sessionStorage.getItem(KEY)) ?? {};
    } catch {
      return;
    }
    for (const field of this.#fields()) {
      if (!(field.name in kept)) continue;
      if (field.type === "checkbox") field.checked = Boolean(kept[field.name]);
      else field.value = String(kept[field.name]);
    }
  }
}
