/**
 * How long the node holds the school's write lock at a time while long cuts are applied: asked by a program of its own
 * process that wants the lock every millisecond and never waits for it.
 */
import { spawn } from "node:child_process"
import { openPulledSchool, SCHOOL } from "../support/pretend-hub.ts"
import { column, table } from "../support/school-file.ts"
import { bench, under } from "./frame.ts"

const attendance = table(
  "attendance",
  [column("id"), column("school_id"), column("name", "text", { notNull: true }), column("number", "int"), column("note"), column("at")],
  { unique: [["number"]] },
)

interface Held {
  readonly longestMs: number
  readonly delayMs: number
}

export default bench({
  name: "write-lock",
  about: "the longest time for which the school's write lock is held, and the event loop of the node meanwhile",
  bars: {
    copy: { what: "first copy of 100,000 rows", unit: "ms", want: under(200) },
    again: { what: "all of them compared and written again", unit: "ms", want: under(200) },
    moved: { what: "20,000 unique numbers moved by one", unit: "ms", want: under(200) },
    settled: { what: "10,000 own changes settled", unit: "ms", want: under(200) },
    delay: { what: "longest delay of the node's event loop", unit: "ms", want: under(250) },
  },
  run: async function* ({ rounds, size, say }) {
    for (let round = 0; round < rounds; round++) {
      const s = await openPulledSchool([attendance])
      const rows = size(100_000, 20_000)
      const row = (i: number, number: number) => ({
        ...{ id: `a${String(i).padStart(6, "0")}`, school_id: SCHOOL, name: `pupil ${i}`, number },
        ...{ note: "a note of usual length", at: "2026-01-01 08:00:00+00" },
      })
      const put = (count: number, number: (i: number) => number) => {
        for (let i = 0; i < count; i++) s.hub.put("attendance", row(i, number(i)))
      }
      const meter = spawn(process.execPath, [new URL("./lock-meter.ts", import.meta.url).pathname, s.path], { stdio: ["pipe", "pipe", "inherit"] })
      let answer: (line: string) => void = () => undefined
      meter.stdout.on("data", (data: Buffer) => answer(String(data)))
      const ask = () =>
        new Promise<number>((resolve) => {
          answer = (line) => resolve(Number(line))
          meter.stdin.write("?\n")
        })
      let delayMs = 0
      /** Pages are made beforehand: what is measured is their delivery. */
      const held = async (change: () => void): Promise<Held> => {
        change()
        await ask()
        for (;;) {
          const page = await s.nextPage({ pageLines: 14 })
          let last = performance.now()
          const timer = setInterval(() => {
            delayMs = Math.max(delayMs, performance.now() - last - 5)
            last = performance.now()
          }, 5)
          const { applied } = await s.run(s.deliver.page(page.header, page.lines, page.trailer))
          clearInterval(timer)
          if (applied) return { longestMs: await ask(), delayMs }
        }
      }
      await ask()
      const copy = await held(() => put(rows, (i) => i))
      yield { bar: "copy", figure: copy.longestMs }
      const again = await held(() => {
        s.hub.epoch = `again ${round}`
      })
      yield { bar: "again", figure: again.longestMs }
      const moved = await held(() => put(size(20_000, 5_000), (i) => (i + 1 < size(20_000, 5_000) ? i + 1 : 10_000_000)))
      yield { bar: "moved", figure: moved.longestMs }
      s.program(`UPDATE attendance SET note = 'mine' WHERE rowid <= ${size(10_000, 3_000)}`)
      await s.freezeAll()
      const settled = await held(() => {
        for (const batch of s.unsettled()) s.hub.ledger(batch.number, batch.hash)
        put(1_000, (i) => i + 20_000_000)
      })
      yield { bar: "settled", figure: settled.longestMs }
      yield { bar: "delay", figure: delayMs }
      say(
        `held ${[copy, again, moved, settled].map(({ longestMs }) => Math.round(longestMs)).join(", ")} ms at most; event loop ${Math.round(delayMs)} ms late at most`,
      )
      meter.stdin.end()
      await s.close()
    }
  },
})
