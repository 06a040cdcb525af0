/**
 * `bun run bench [NAME …] [--quick] [--json]`: every `*.bench.ts` beside this file, or those named, each in a process of its
 * own, then one table. A missed bar is said and is no failure; a benchmark that breaks is one.
 */
import { spawn } from "node:child_process"
import { readdirSync, writeSync } from "node:fs"
import { arch, cpus, platform } from "node:os"
import process from "node:process"
import { createInterface } from "node:readline"
import type { Readable } from "node:stream"
import { runtimeName } from "../../src/runtime.ts"
import { type Bench, judge, printTable, type Sample, type Verdict } from "./frame.ts"

const ROUNDS = 3
/** A benchmark that takes longer hangs. */
const LIMIT_MS = 15 * 60_000
const SAMPLES_FD = 3

const args = process.argv.slice(2)
const isQuick = args.includes("--quick")
const isJson = args.includes("--json")
const wanted = args.filter((arg) => !arg.startsWith("-"))
const OPTIONS = ["--quick", "--json", "--here"]
const unknownOption = args.find((arg) => arg.startsWith("-") && !OPTIONS.includes(arg))

const load = async (name: string): Promise<Bench> => ((await import(`./${name}.bench.ts`)) as { default: Bench }).default

/** In the benchmark's own process: its samples, one line of JSON each, on a pipe beside what the parts under test print. */
const runHere = async (name: string): Promise<void> => {
  const one = await load(name)
  const setting = {
    rounds: isQuick ? 1 : ROUNDS,
    quick: isQuick,
    size: (full: number, quick: number) => (isQuick ? quick : full),
    say: (line: string) => void process.stderr.write(`  ${line}\n`),
  }
  for await (const sample of one.run(setting)) writeSync(SAMPLES_FD, `${JSON.stringify(sample)}\n`)
}

const runApart = (name: string): Promise<{ readonly samples: ReadonlyArray<Sample>; readonly failure: string | null }> =>
  new Promise((resolve) => {
    const child = spawn(process.execPath, [import.meta.filename, "--here", name, ...(isQuick ? ["--quick"] : [])], {
      stdio: ["ignore", 2, "inherit", "pipe"],
    })
    const samples: Array<Sample> = []
    let failure: string | null = null
    createInterface({ input: child.stdio[SAMPLES_FD] as Readable }).on("line", (line) => samples.push(JSON.parse(line) as Sample))
    const timer = setTimeout(() => {
      failure = `took longer than ${LIMIT_MS / 60_000} minutes`
      child.kill("SIGKILL")
    }, LIMIT_MS)
    child.once("close", (code) => {
      clearTimeout(timer)
      resolve({ samples, failure: failure ?? (code === 0 ? null : `ended with exit code ${code}`) })
    })
  })

const runAll = async (): Promise<number> => {
  const found = readdirSync(import.meta.dirname)
    .flatMap((file) => (file.endsWith(".bench.ts") ? [file.slice(0, -".bench.ts".length)] : []))
    .sort()
  if (unknownOption !== undefined) {
    process.stderr.write(`bun run bench [NAME …] [--quick] [--json]; there are ${found.join(", ")}\n`)
    return unknownOption === "--help" ? 0 : 64
  }
  const unknown = wanted.filter((name) => !found.includes(name))
  if (unknown.length > 0) {
    process.stderr.write(`no benchmark ${unknown.join(", ")}; there are ${found.join(", ")}\n`)
    return 64
  }
  const verdicts: Array<Verdict> = []
  const failures: Array<string> = []
  for (const name of wanted.length > 0 ? wanted : found) {
    const one = await load(name)
    process.stderr.write(`${name}: ${one.about}\n`)
    const { samples, failure } = await runApart(name)
    if (failure !== null) failures.push(`${name} ${failure}`)
    verdicts.push(...judge(one, samples))
  }
  const missed = verdicts.filter((verdict) => verdict.met === false).length
  const machine = `${cpus().length} cores (${cpus()[0]?.model.trim() ?? "?"}), ${platform()} ${arch()}, ${runtimeName}`
  if (isJson) process.stdout.write(`${JSON.stringify({ machine, quick: isQuick, verdicts, failures })}\n`)
  else {
    process.stdout.write(`\n${printTable(verdicts)}\n\n`)
    process.stdout.write(`${machine}; ${isQuick ? "one round of small loads" : `the middle of ${ROUNDS} rounds`}\n`)
    process.stdout.write(`${verdicts.filter((verdict) => verdict.met === true).length} bars met, ${missed} missed\n`)
    for (const failure of failures) process.stdout.write(`FAILED: ${failure}\n`)
  }
  return failures.length === 0 ? 0 : 1
}

try {
  if (args[0] === "--here") await runHere(wanted[0] ?? "")
  else process.exitCode = await runAll()
} catch (cause) {
  process.stderr.write(`${cause instanceof Error ? cause.stack : String(cause)}\n`)
  process.exitCode = 1
}
// A native driver or a worker of a benchmark must not keep the process.
process.exit()
