/**
 * `bun run demo`: hub, two schools and a terminal on this machine, with a Postgres of their own, to look at and play with.
 * `--check`: plays a fixed scenario, prints one line per fact, and exits 0 when all are true, else 1.
 */
import process from "node:process"
import { openFacts } from "./demo/facts.ts"
import { openStage, type Stage } from "./demo/stage.ts"

const print = (line: string): void => void process.stdout.write(`${line}\n`)
const isCheck = process.argv.includes("--check")
const began = performance.now()

let stage: Stage | undefined
let isEnding = false
const end = async (code: number): Promise<never> => {
  if (!isEnding) {
    isEnding = true
    await stage?.close()
  }
  process.exit(code)
}
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => void end(signal === "SIGTERM" ? 143 : isCheck ? 130 : 0))

const check = async (opened: Stage): Promise<number> => {
  const { play } = await import("./demo/scenario.ts")
  const facts = openFacts(print)
  try {
    await play(opened, facts)
  } catch (cause) {
    print(`\nthe scenario broke off: ${cause instanceof Error ? (cause.stack ?? cause.message) : String(cause)}`)
    return 1
  }
  if (facts.failed() > 0)
    for (const one of [opened.hub, opened.north.service, opened.south.service, opened.terminal.service]) print(`\n-- ${one.name}\n${one.log()}`)
  print(`\n${facts.count() - facts.failed()} facts true, ${facts.failed()} not, ${((performance.now() - began) / 1000).toFixed(0)} s`)
  return facts.failed() === 0 ? 0 : 1
}

try {
  stage = await openStage((line) => print(`starting ${line}`))
  if (isCheck) await end(await check(stage))
  const { interactive } = await import("./demo/interactive.ts")
  await interactive(stage, print)
  await end(0)
} catch (cause) {
  if (!isEnding) process.stderr.write(`demo: ${cause instanceof Error ? cause.message : String(cause)}\n`)
  await end(1)
}
