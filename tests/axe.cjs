// What axe-core finds wrong with a page for those who cannot see it, or cannot see it well.
const { source } = require("axe-core");

/** One line for each fault: its rule, and where it stands. */
module.exports = async function faults(page) {
  await page.evaluate(source);
  const { violations } = await page.evaluate(() => axe.run());
  return violations.flatMap(({ id, nodes }) => nodes.map(({ target, any }) => `${id}: ${target} ${any[0]?.message ?? ""}`));
};
