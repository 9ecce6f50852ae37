// What the server says of the call, as pairs of words. The page knows no fixed list: what it is given, it shows.

const ROWS = 40; // enough for every number of one call; a runaway reply must not fill the page

export function showServer(list, status) {
  const rows = flatten(status, "").slice(0, ROWS);
  list.replaceChildren(
    ...rows.map(([name, value]) => {
      const row = document.createElement("div");
      const term = document.createElement("dt");
      term.textContent = name;
      const description = document.createElement("dd");
      description.textContent = value;
      row.append(term, description);
      return row;
    }),
  );
}

/** {"statistics": {"packets_in": 3}} → [["packets in", "3"]]; the group's name leads only from the third level on. */
function flatten(object, group) {
  return Object.entries(object).flatMap(([key, value]) => {
    const name = `${group} ${key.replaceAll("_", " ")}`.trim();
    if (value === null || value === "") return [];
    if (Array.isArray(value)) return value.length ? [[name, value.map(word).join(", ")]] : [];
    if (typeof value === "object") return flatten(value, key === "statistics" ? "" : key.replaceAll("_", " "));
    return [[name, word(value)]];
  });
}

function word(value) {
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : value.toFixed(3);
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
