/** `tables list | resume`: which tables flow, and the word with which a paused one goes on in its new shape. */
import type { TableStatus } from "../status/snapshot.ts"
import { apiOf } from "./api.ts"
import type { Io } from "./io.ts"
import { EXIT, type Input } from "./options.ts"
import { clean, countText, green, red, table, yellow } from "./text.ts"

export const list = async (input: Input, io: Io): Promise<number> => {
  const { items, asOf } = await apiOf(input).get<{ readonly items: ReadonlyArray<TableStatus>; readonly asOf: string }>("/api/sync/tables")
  if (input.flag("json")) {
    io.out(`${JSON.stringify({ schemaVersion: 1, asOf, items })}\n`)
    return EXIT.ok
  }
  const state = (one: TableStatus) =>
    one.state === "paused" ? red(io.look, "paused") : one.state === "loading" ? yellow(io.look, "loading") : green(io.look, one.state ?? "active")
  io.out(
    table(
      io.look,
      [{ title: "Table" }, { title: "State" }, { title: "Rows", right: true }, { title: "Why" }],
      items.map((one) => [clean(one.table), state(one), countText(one.synced), clean(one.reason ?? one.fault ?? "")]),
    ),
  )
  return EXIT.ok
}

export const resume = async (input: Input, io: Io): Promise<number> => {
  const name = input.args["name"] ?? ""
  const one = await apiOf(input).post<TableStatus>(`/api/sync/tables/${encodeURIComponent(name)}/resume`, {})
  if (input.flag("json")) io.out(`${JSON.stringify(one)}\n`)
  else io.out(`${clean(one.table)} goes on in its present shape${one.state === "loading" ? "; its rows are being read again" : ""}\n`)
  return EXIT.ok
}
