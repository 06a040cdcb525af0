/** A school program of its own process that writes all the time: how long its writes wait at worst, until stdin ends. */
import Database from "libsql"

const db = new Database(process.argv[2] as string, { timeout: 5000 })
db.exec("PRAGMA synchronous=OFF; CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT)")
const insert = db.prepare("INSERT INTO notes (text) VALUES (?)")
let writes = 0
let worstMs = 0
let failures = 0
let ended = false
process.stdin.on("end", () => {
  ended = true
})
process.stdin.resume()
console.log("ready")
const step = () => {
  const began = performance.now()
  try {
    insert.run(["x"])
    writes++
  } catch {
    failures++
  }
  worstMs = Math.max(worstMs, performance.now() - began)
  if (ended) console.log(JSON.stringify({ writes, worstMs, failures }))
  else setTimeout(step, 7)
}
step()
