// What the server says of the call, as pairs of words. The page knows no fixed list: what it is given, it shows,
// less what is shown elsewhere (the id) or says nothing (zeros).

const ROWS = 40; // enough for every number of one call; a runaway reply must not fill the page

export function showServer(list, status) {
  const rows = flatten({ ...status, id: null, object: null }, "").slice(0, ROWS);
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

/** {"statistics": {"audio": {"packets_in": 3}}} → [["audio packets in", "3"]]; milestones are in ms. */
function flatten(object, group) {
  return Object.entries(object).flatMap(([key, value]) => {
    const name = `${group} ${key.replaceAll("_", " ")}`.trim();
    if (value === null || value === "" || value === 0) return [];
    if (key === "milestones" && typeof value === "object") {
      return Object.entries(value).map(([step, at]) => [`${step.replaceAll("_", " ")} after`, `${word(at)} ms`]);
    }
    if (Array.isArray(value)) return value.length ? [[name, value.map(word).join(", ")]] : [];
    if (typeof value === "object") return flatten(value, key === "statistics" ? "" : key.replaceAll("_", " "));
    return [[name, word(value)]];
  });
}

function word(value) {
  if (typeof value === "number") return String(Number(value.toPrecision(6)));
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
