/**
 * An example of a worker module: one line in `late.txt` for each pupil who punched after the bell, and one for each whom a
 * teacher marked absent. It knows nothing of schoolbus but this interface.
 */
import { worker } from "../../../src/workers/define.ts"

export default worker({
  on: { punches: ["insert"], attendance: ["insert"] },
  async handle(events, ctx) {
    for (const { table, row } of events) {
      if (row === null) continue
      const pupil = await ctx.row("students", (table === "punches" ? row["person_id"] : row["student_id"]) ?? null)
      if (pupil === null) continue
      if (table === "attendance") {
        if (row["status"] === "absent") await ctx.append("late.txt", `${row["day"]} absent ${pupil["full_name"]}`)
        continue
      }
      const school = await ctx.row("schools", pupil["school_id"] ?? null)
      const { bell = "08:00" } = JSON.parse(String(school?.["settings"] ?? "{}")) as { readonly bell?: string }
      // "2026-03-03 07:41:09", as the terminal's clock showed it.
      const [day = "", time = ""] = String(row["at"]).split(" ")
      if (time > bell) await ctx.append("late.txt", `${day} ${time} late ${pupil["full_name"]}`)
    }
  },
})
