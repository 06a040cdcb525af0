import { worker } from "../../../src/workers/define.ts"

export default worker({
  on: { pupils: ["insert", "delete"] },
  async handle(events, ctx) {
    for (const event of events)
      await ctx.append("seen.txt", `${event.op} ${JSON.stringify(event.key)} ${event.row === null ? "gone" : String(event.row["name"])}`)
    const other = await ctx.row("public.pupils", "p1")
    if (other !== null) ctx.log(`p1 is ${String(other["name"])}`)
  },
})
