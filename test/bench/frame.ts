/**
 * What a benchmark is, and how its bars are judged. A file `NAME.bench.ts` exports one as its default; `main.ts` finds it,
 * runs it in a process of its own, and prints its bars. A benchmark works on real parts, measures the peer beside them in
 * the same round, and yields each figure as it gets it:
 *
 *     export default bench({
 *       name: "slot-to-feed",
 *       about: "rows/s from the slot to the committed feed, against pg_recvlogical",
 *       bars: { hundreds: { what: "transactions of 100", unit: "rows/s", want: atLeast(0.9) } },
 *       run: async function* ({ rounds, size }) {
 *         for (let round = 0; round < rounds; round++) yield { bar: "hundreds", figure: …, peer: … }
 *       },
 *     })
 */

/** A bar's condition; `text` is how the table shows it. */
export interface Want {
  readonly text: string
  readonly met: (figure: number, peer: number | undefined) => boolean
}

/** At least so many times the peer: rates. */
export const atLeast = (times: number): Want => ({
  text: `>= ${times} x`,
  met: (figure, peer) => peer !== undefined && figure >= times * peer,
})

/** At most so many times the peer: costs. */
export const atMost = (times: number): Want => ({
  text: `<= ${times} x`,
  met: (figure, peer) => peer !== undefined && figure <= times * peer,
})

/** Under a fixed number, or under a number plus so many times the peer. */
export const under = (limit: number, plusTimes = 0): Want => ({
  text: plusTimes === 0 ? `< ${limit}` : `< ${limit} + ${plusTimes} x`,
  met: (figure, peer) => (plusTimes === 0 ? figure < limit : peer !== undefined && figure < limit + plusTimes * peer),
})

export interface Bar {
  readonly what: string
  readonly unit: string
  /** Without one the figure is shown for information. */
  readonly want?: Want
}

export interface Sample<Name extends string = string> {
  readonly bar: Name
  readonly figure: number
  readonly peer?: number
}

export interface Setting {
  /** How often to measure: 3, or 1 when quick. */
  readonly rounds: number
  readonly quick: boolean
  /** The size of a load: the first number, or the second when quick. */
  readonly size: (full: number, quick: number) => number
  /** A line for whoever waits. */
  readonly say: (line: string) => void
}

export interface Bench<Name extends string = string> {
  /** What `bun run bench NAME` takes; the file's name. */
  readonly name: string
  readonly about: string
  readonly bars: Readonly<Record<Name, Bar>>
  readonly run: (setting: Setting) => AsyncIterable<Sample<Name>>
}

export const bench = <Name extends string>(one: Bench<Name>): Bench<Name> => one

export interface Verdict {
  readonly bench: string
  readonly what: string
  readonly unit: string
  readonly figure: number | null
  readonly peer: number | null
  readonly ratio: number | null
  readonly bar: string
  /** null: no bar, or not measured. */
  readonly met: boolean | null
}

/** The sample in the middle: by ratio where there is a peer, so that figure, peer and ratio belong to one round. */
const middle = (samples: ReadonlyArray<Sample>): Sample | undefined => {
  const rank = ({ figure, peer }: Sample): number => (peer === undefined ? figure : figure / peer)
  return samples.toSorted((a, b) => rank(a) - rank(b))[Math.floor((samples.length - 1) / 2)]
}

export const judge = (one: Bench, samples: ReadonlyArray<Sample>): ReadonlyArray<Verdict> =>
  Object.entries(one.bars).map(([name, bar]) => {
    const sample = middle(samples.filter((s) => s.bar === name))
    return {
      bench: one.name,
      what: bar.what,
      unit: bar.unit,
      figure: sample?.figure ?? null,
      peer: sample?.peer ?? null,
      ratio: sample?.peer === undefined ? null : sample.figure / sample.peer,
      bar: bar.want?.text ?? "",
      met: sample === undefined || bar.want === undefined ? null : bar.want.met(sample.figure, sample.peer),
    }
  })

const number = (value: number | null): string =>
  value === null ? "" : Math.abs(value) >= 100 ? Math.round(value).toLocaleString("en-US") : value.toPrecision(3)

export const printTable = (verdicts: ReadonlyArray<Verdict>): string => {
  const head = ["bench", "what", "figure", "peer", "ratio", "unit", "bar", ""]
  const rows = verdicts.map((v) => [
    v.bench,
    v.what,
    v.figure === null ? "not measured" : number(v.figure),
    number(v.peer),
    v.ratio === null ? "" : v.ratio.toFixed(2),
    v.unit,
    v.bar,
    v.met === null ? "" : v.met ? "met" : "NOT MET",
  ])
  const isNumber = (column: number): boolean => column >= 2 && column <= 4
  const widths = head.map((title, i) => Math.max(title.length, ...rows.map((row) => (row[i] ?? "").length)))
  const line = (cells: ReadonlyArray<string>): string =>
    cells
      .map((cell, i) => (isNumber(i) ? cell.padStart(widths[i] ?? 0) : cell.padEnd(widths[i] ?? 0)))
      .join("  ")
      .trimEnd()
  return [line(head), ...rows.map(line)].join("\n")
}
