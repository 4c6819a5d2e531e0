// The search of the built site, as the browser runs it: node search.cjs SITE QUERY... prints the hits of each as JSON.
const fs = require("fs")
const path = require("path")
const vm = require("vm")

const [site, ...queries] = process.argv.slice(2)
const scripts = path.join(site, "assets", "javascripts")
const workers = path.join(scripts, "workers")
const code = fs.readFileSync(path.join(workers, fs.readdirSync(workers).find((name) => /^search\..*\.js$/.test(name))), "utf8")

const answers = []
let hear
const world = {
  console,
  URL,
  addEventListener: (_, listener) => { hear = listener },
  postMessage: (message) => answers.push(message),
  importScripts: (...urls) => urls.forEach((url) => vm.runInContext(fs.readFileSync(path.join(workers, url), "utf8"), context)),
}
world.self = world
const context = vm.createContext(world)
vm.runInContext(code, context)

const ask = async (type, data) => {
  await hear({ data: { type, data } })
  return answers.pop().data
}

const main = async () => {
  const index = JSON.parse(fs.readFileSync(path.join(site, "search", "search_index.json"), "utf8"))
  await ask(0, { ...index, options: { suggest: false } })
  const hits = {}
  for (const query of queries) {
    const { items } = await ask(2, query)
    hits[query] = items.flat().filter((item) => item.score > 0).map((item) => item.location)
  }
  console.log(JSON.stringify(hits))
}
main()
