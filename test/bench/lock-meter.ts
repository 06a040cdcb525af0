/** A program that wants the write lock of a file every millisecond and never waits: for how long it was refused at most, in ms, since the last question. */
import process from "node:process"
import { createInterface } from "node:readline"
import Database from "libsql"

const db = new Database(process.argv[2] as string, { timeout: 0 })
let longest = 0
let since = 0
const look = (): void => {
  const now = performance.now()
  try {
    db.exec("BEGIN IMMEDIATE")
    db.exec("ROLLBACK")
    if (since > 0) longest = Math.max(longest, now - since)
    since = 0
  } catch {
    if (since === 0) since = now
  }
}
const timer = setInterval(look, 1)
const questions = createInterface({ input: process.stdin })
questions.on("line", () => {
  look()
  process.stdout.write(`${longest}\n`)
  longest = 0
})
questions.on("close", () => clearInterval(timer))
