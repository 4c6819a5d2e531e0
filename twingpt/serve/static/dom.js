// Making elements, and text that can be shown.

export function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (className) made.className = className;
  if (tag === "button") made.type = "button";
  return made;
}

/** A model writes bytes, and a young one also bytes that are no letter. Those arrive as U+FFFD, which tells a reader nothing. */
export function readable(text) {
  return text.replaceAll("\ufffd", "");
}
