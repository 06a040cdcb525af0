/** A program that writes to two tables alike, at random, until its input ends: `rebuild-writer.ts FILE SEED ROWS`; prints a blank for each write, and how many at its end. */
import Database from "libsql"
import { randomOf } from "../sim/random.ts"

const [path = "", seed = "0", rows = "0"] = process.argv.slice(2)
const db = new Database(path, { timeout: 20_000 })
const random = randomOf(Number(seed))
let made = Number(rows)
const some = () => `p${1 + random.below(Number(rows))}`
const both = (sql: string) => ["pupils", "mirror"].map((name) => sql.replaceAll("TABLE", name)).join("; ")
const code = (key: string) => (db.prepare("SELECT code FROM mirror WHERE id = ?").get([key]) as { code: string | null } | undefined)?.code ?? null

const kinds: ReadonlyArray<(a: string, b: string) => string> = [
  (a) => both(`UPDATE TABLE SET name = 'again ${made}' WHERE id = '${a}'`),
  (a) => both(`DELETE FROM TABLE WHERE id = '${a}'`),
  () => both(`INSERT INTO TABLE (id, code, name) VALUES ('n${made}', 'n${made}', 'new')`),
  (a) => both(`REPLACE INTO TABLE (id, code, name) VALUES ('n${made}', (SELECT code FROM TABLE WHERE id = '${a}'), 'in its place')`),
  (a) => both(`UPDATE TABLE SET id = 'k${made}' WHERE id = '${a}'`),
  (a, b) => {
    const [one, other] = [code(a), code(b)]
    if (a === b || one === null || other === null) return ""
    const swap = `UPDATE TABLE SET code = NULL WHERE id = '${a}'; UPDATE TABLE SET code = '${one}' WHERE id = '${b}'; UPDATE TABLE SET code = '${other}' WHERE id = '${a}'`
    return ["pupils", "mirror"].map((name) => swap.replaceAll("TABLE", name)).join("; ")
  },
]

let isOver = false
process.stdin.on("data", () => undefined)
process.stdin.on("end", () => {
  isOver = true
})
let longest = 0
let writes = 0
const next = () => {
  if (isOver) {
    db.close()
    process.stdout.write(JSON.stringify({ writes, longest }))
    return
  }
  made++
  writes++
  const startedAt = performance.now()
  db.exec(`BEGIN IMMEDIATE; ${random.pick(kinds)(some(), some())}; COMMIT`)
  longest = Math.max(longest, performance.now() - startedAt)
  process.stdout.write(" ")
  setTimeout(next, 1)
}
next()
