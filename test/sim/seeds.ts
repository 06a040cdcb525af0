/**
 * Runs seeds one after the other. Each replays exactly, or a seed that failed could not be looked at again: the one in the middle,
 * and with `TWICE=1` every one, runs a second time, and both must have gone the same way.
 */
import process from "node:process"
import { keepThreads } from "../support/warm-threads.ts"
import { fail } from "./agree.ts"
import { type Outcome, type Prepared, prepare, type Trace } from "./run.ts"

const runSeed = async (prepared: Promise<Prepared>, onReady: () => void): ReturnType<Prepared["run"]> => {
  const { run, close } = await prepared
  onReady()
  try {
    return await run()
  } finally {
    await close()
  }
}

const compare = (first: Trace, second: Trace): void => {
  const at = first.findIndex((step, i) => step !== second[i])
  if (at >= 0 || first.length !== second.length) {
    const i = at < 0 ? first.length : at
    fail(`the second run went another way at ${i}, after ${first.slice(Math.max(0, i - 3), i).join("\n  ")}`, first[i], second[i])
  }
}

/** Of the seeds that SEEDS names (`"7"`, `"1-500"`; else 1-100), those that one of so many files runs. */
export const runSeeds = async (file: number, files: number): Promise<void> => {
  keepThreads()
  const [first = 1, last = first] = (process.env["SEEDS"] ?? "1-100").split("-").map(Number)
  const total = { seeds: 0, writes: 0, batches: 0, conflicts: 0, refused: 0, faults: 0 }
  const own = Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => first + i).filter((seed) => seed % files === file)
  const runs = own.flatMap((seed, i) => (i === Math.floor(own.length / 2) || process.env["TWICE"] === "1" ? [seed, seed] : [seed]))
  // The next one gets its database and files while one runs.
  let next: Promise<Prepared> | undefined
  let started = 0
  const prepareNext = (): void => {
    const seed = runs[started]
    next = seed === undefined ? undefined : prepare(seed)
    next?.catch(() => undefined)
  }
  prepareNext()
  let before = { seed: 0, trace: [] as Trace }
  try {
    for (const seed of runs) {
      const { outcome, trace } = await runSeed(next as Promise<Prepared>, () => {
        started++
        prepareNext()
      })
        .then((ran) => {
          if (before.seed === seed) compare(before.trace, ran.trace)
          return ran
        })
        .catch((cause: Error) => {
          throw new Error(`seed ${seed} (SEEDS=${seed} bun run sim): ${cause.message}`, { cause })
        })
      if (before.seed !== seed) {
        total.seeds++
        for (const [name, n] of Object.entries(outcome)) total[name as keyof Outcome] += n
      }
      before = { seed, trace }
    }
  } finally {
    await next?.then((prepared) => prepared.close())
  }
  process.stdout.write(`seeds ${first}-${last}, every ${files} from ${file}: ${JSON.stringify(total)}\n`)
  // A run in which nothing goes wrong proves nothing.
  if (total.seeds >= 20 && Object.values(total).some((n) => n === 0)) fail("nothing of a kind happened", total)
}
