/** `verify`: compares what this node holds with head office, and repairs it when told. */
import { apiOf } from "./api.ts"
import type { Io } from "./io.ts"
import { EXIT, type Input } from "./options.ts"
import { clean, table } from "./text.ts"
import type { Lost, Verified } from "../status/verify.ts"

/** Rows that stand otherwise than before Postgres was put back. */
const lost = async (input: Input, io: Io): Promise<number> => {
  const found = await apiOf(input).get<Lost>("/api/sync/verify/lost?limit=1000")
  const code = found.count > 0 ? EXIT.failed : EXIT.ok
  if (input.flag("json")) io.out(`${JSON.stringify({ schemaVersion: 1, ...found })}\n`)
  else if (found.at === null) io.out("Postgres has not been put back since this hub's feed began\n")
  else if (found.count === 0) io.out(`Postgres was put back, noticed ${found.at}: every row stands as before, or was written again\n`)
  else {
    io.out(`Postgres was put back, noticed ${found.at}: ${found.count} rows stand otherwise than before\n\n`)
    const what = ({ was, now }: Lost["rows"][number]) => (was === null ? "had been deleted" : now === null ? "gone" : "as it was earlier")
    io.out(
      table(
        io.look,
        [{ title: "table" }, { title: "key" }, { title: "now" }, { title: "before" }],
        found.rows.map((row) => [clean(row.table), clean(row.key), what(row), clean(row.was === null ? "" : JSON.stringify(row.was))]),
      ),
    )
  }
  return code
}

export const run = async (input: Input, io: Io): Promise<number> => {
  if (input.flag("lost")) return lost(input, io)
  const repair = input.flag("repair")
  const result = await apiOf(input).post<Verified>("/api/sync/verify", { repair })
  const isLeft = result.differences > 0 && !repair
  if (input.flag("json")) {
    io.out(`${JSON.stringify({ schemaVersion: 1, ...result })}\n`)
    return isLeft ? EXIT.failed : EXIT.ok
  }
  const what = result.compared === "feed-school" ? "this school's file and head office" : "Postgres and the hub's feed"
  const rows = result.tables.reduce((sum, entry) => sum + entry.rows, 0)
  const told = `${rows} rows in ${result.tables.length} tables, ${result.seconds.toFixed(1)} s, ${result.bytes} bytes over the link`
  if (result.equal) {
    io.out(`${what} are equal: ${told}\n`)
    return EXIT.ok
  }
  io.out(`${what} differ in ${result.differences} rows: ${told}\n\n`)
  const differing = result.tables.filter((entry) => entry.missing + entry.extra + entry.differing > 0)
  io.out(
    table(
      io.look,
      [
        { title: "table" },
        { title: "only there", right: true },
        { title: "only here", right: true },
        { title: "different", right: true },
        { title: "for example" },
      ],
      differing.map((entry) => [
        clean(entry.table),
        String(entry.missing),
        String(entry.extra),
        String(entry.differing),
        clean(entry.keys.slice(0, 3).join(" ")),
      ]),
    ),
  )
  if (repair) io.out(`\n${result.repaired.up} go up and get a verdict, ${result.repaired.down} are sent again by head office\n`)
  else io.err("mend it with: schoolbus verify --repair\n")
  return isLeft ? EXIT.failed : EXIT.ok
}
