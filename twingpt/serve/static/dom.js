// Making elements.

export function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (className) made.className = className;
  if (tag === "button") made.type = "button";
  return made;
}
