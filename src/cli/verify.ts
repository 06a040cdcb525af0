/** `verify`: compares what this node holds with head office, and repairs it when told. */
import { apiOf } from "./api.ts"
import type { Io } from "./io.ts"
import { EXIT, type Input } from "./options.ts"
import { clean, table } from "./text.ts"
import type { Verified } from "../status/verify.ts"

export const run = async (input: Input, io: Io): Promise<number> => {
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
