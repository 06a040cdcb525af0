/**
 * Writes a line for every pupil who is absent or late, for the office to act on: `2026-03-03 absent Amina Yusuf`.
 * Copy it into the folder that `--workers` names and change names to those of your tables. It needs nothing but itself there: only types are
 * imported.
 */
import type { WorkerContext, WorkerModule, WorkerRow } from "../define.ts"

/** School begins; a punch after it is late. Wall clock of the terminal. */
const BEGINS = "08:00:00"
const REPORT = "absence.txt"

const nameOf = async (ctx: WorkerContext, id: unknown): Promise<string> => {
  if (typeof id !== "string" && typeof id !== "number") return "unknown"
  const pupil = await ctx.row("students", id)
  return String(pupil?.["full_name"] ?? pupil?.["name"] ?? id)
}

const lateBy = (punch: WorkerRow): string | null => {
  const [day = "", time = ""] = String(punch["at"]).split(" ")
  return time > BEGINS ? `${day} late ${time}` : null
}

export default {
  on: { punches: ["insert"], attendance: ["insert", "update"] },
  async handle(events, ctx) {
    for (const { table, row } of events) {
      if (row === null) continue
      if (table === "punches") {
        const late = lateBy(row)
        const who = row["person_id"] ?? null
        if (late !== null && who !== null) await ctx.append(REPORT, `${late} ${await nameOf(ctx, who)}`)
      } else if (row["status"] === "absent" || row["status"] === "late") {
        await ctx.append(REPORT, `${String(row["date"] ?? row["day"] ?? "")} ${row["status"]} ${await nameOf(ctx, row["student_id"])}`.trim())
      }
    }
  },
} satisfies WorkerModule
