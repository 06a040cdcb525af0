/** Facts: sentences that must become true within their time. Each prints one line, so a failed run says what was missing. */
const STEP_MS = 50
const LIMIT_SECONDS = 20

/** True, or why not yet. */
export type Probe = () => Promise<true | string> | true | string

export interface Facts {
  /** Waits until the probe says true; prints `ok` or `FAIL`; the answer says which. */
  readonly become: (sentence: string, probe: Probe, seconds?: number) => Promise<boolean>
  readonly heading: (text: string) => void
  readonly failed: () => number
  readonly count: () => number
}

export const openFacts = (print: (line: string) => void): Facts => {
  let failed = 0
  let count = 0
  return {
    become: async (sentence, probe, seconds = LIMIT_SECONDS) => {
      const began = performance.now()
      const elapsed = (): string => `${((performance.now() - began) / 1000).toFixed(1).padStart(5)} s`
      count++
      for (;;) {
        const answer = await Promise.resolve(probe()).catch((cause: unknown) => `error: ${cause instanceof Error ? cause.message : String(cause)}`)
        if (answer === true) {
          print(`ok    ${elapsed()}  ${sentence}`)
          return true
        }
        if (performance.now() - began > seconds * 1000) {
          failed++
          print(`FAIL  ${elapsed()}  ${sentence}: ${answer}`)
          return false
        }
        await new Promise((resolve) => setTimeout(resolve, STEP_MS))
      }
    },
    heading: (text) => print(`\n${text}`),
    failed: () => failed,
    count: () => count,
  }
}

export const equal = (got: unknown, wanted: unknown): true | string => {
  const [a, b] = [JSON.stringify(got), JSON.stringify(wanted)]
  return a === b || `got ${a.slice(0, 300)}, wanted ${b.slice(0, 300)}`
}
