// Before the first paint, or a dark page would flash white. No module: modules are deferred.
try {
  const theme = localStorage.getItem("twingpt.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage may be switched off; then the system's setting holds.
}
