/** Results of commands, and what they make of the people whom the commands were about. Inside the caller's transaction. */
import * as Effect from "effect/Effect"
import type { Tx } from "../libsql/client.ts"
import { timestamptz } from "./clock.ts"
import { capabilityOf, cardFault, type CommandResult, isDelete, judgeResult, QUERY_USERS } from "./command.ts"
import type { Device } from "./device.ts"
import { type CommandRecord, OPEN } from "./outbox.ts"
import { markAll } from "./school.ts"

/** A command that was sent so many times without a result has failed. */
export const MAX_ATTEMPTS = 10
/** What stands at a command until it is answered in them. */
const OLDER_WORDS = "the terminal is spoken to in older words"

/** Sets the state of commands, and of the people whose newest command is among them. */
export const setStatus = (tx: Tx, device: Device, ids: ReadonlyArray<number>, set: string, now: number) =>
  Effect.gen(function* () {
    if (ids.length === 0) return
    const json = JSON.stringify(ids)
    yield* tx.run(`UPDATE device_commands SET ${set} WHERE device_id = ?1 AND id IN (SELECT value FROM json_each(?2))`, [
      device.id,
      json,
      timestamptz(now),
    ])
    yield* tx.run(
      `UPDATE device_user_sync_status AS s SET status = c.status, attempts = c.attempts, error = coalesce(c.error, s.error), updated_at = ?3
         FROM device_commands c
        WHERE s.device_id = ?1 AND s.command_id IN (SELECT value FROM json_each(?2)) AND c.school = s.school AND c.device_id = ?1 AND c.id = s.command_id`,
      [device.id, json, timestamptz(now)],
    )
  })

/** How many finished commands are looked at. */
const MAX_LOOKED_AT = 1_000

/** The terminal has said of such a command that it is done. */
const hasDone = (tx: Tx, device: Device, capability: string) =>
  Effect.map(
    tx.all<{ n: number }>(
      `SELECT EXISTS (SELECT 1 FROM (SELECT command, status, result FROM device_commands WHERE device_id = ?1 ORDER BY id DESC LIMIT ${MAX_LOOKED_AT})
                       WHERE status = 'done' AND result = 0 AND (command = ?2 OR substr(command, 1, length(?2) + 1) = ?2 || ' ')) AS n`,
      [device.id, capability],
    ),
    ([row]) => row?.n === 1 && !device.unsupported.split(",").includes(capability),
  )

type Row = Pick<CommandRecord, "command" | "pin" | "status" | "attempts" | "result" | "error">

export const settle = (tx: Tx, device: Device, { id, result }: CommandResult, now: string) =>
  Effect.gen(function* () {
    const [row] = yield* tx.all<Row>("SELECT command, pin, status, attempts, result, error FROM device_commands WHERE device_id = ? AND id = ?", [
      device.id,
      id,
    ])
    // A repeated result, one of a command that no longer counts, and an id that was never given out change nothing.
    if (row === undefined || ["done", "cancelled"].includes(row.status) || (row.status === "failed" && row.result !== null)) return null
    const capability = capabilityOf(row.command)
    const judged = judgeResult(row.command, result, device.family)
    // What it has done for others it knows: it refuses this one.
    const isKnown = judged.outcome === "unsupported" && (yield* hasDone(tx, device, capability))
    const { outcome, error } = isKnown ? ({ outcome: "failed", error: `the terminal refused it (${result})` } as const) : judged
    if (outcome === "later") return null
    // Old firmware knows the same under an older word: it is said once more in that.
    const isOlder =
      outcome === "unsupported" && device.family === "att" && /^DATA (UPDATE|DELETE) USERINFO$/.test(capability) && row.error !== OLDER_WORDS
    const isAgain = outcome === "retry" && row.attempts < MAX_ATTEMPTS
    const next = isOlder ? "pending" : isAgain ? "sent" : outcome === "done" ? "done" : "failed"
    yield* tx.run(
      "UPDATE device_commands SET status = ?1, result = ?2, error = ?3, done_at = CASE WHEN ?1 IN ('sent', 'pending') THEN NULL ELSE ?4 END WHERE device_id = ?5 AND id = ?6",
      [next, isOlder ? null : result, isOlder ? OLDER_WORDS : error, now, device.id, id],
    )
    if (row.pin !== null) yield* settlePerson(tx, device, { id, pin: row.pin, command: row.command, next, error, now })
    if (row.command === QUERY_USERS && (next === "done" || next === "failed")) yield* markAll(tx)
    return outcome === "unsupported" && capability !== "CHECK" ? capability : null
  })

const settlePerson = (
  tx: Tx,
  device: Device,
  of: {
    readonly id: number
    readonly pin: string
    readonly command: string
    readonly next: string
    readonly error: string | null
    readonly now: string
  },
) =>
  Effect.gen(function* () {
    const [held] = yield* tx.all<{ card: string | null; command_id: number | null }>(
      "SELECT card, command_id FROM device_user_sync_status WHERE device_id = ? AND pin = ?",
      [device.id, of.pin],
    )
    const isDeleting = isDelete(of.command)
    const isNewest = held?.command_id === of.id
    // Of several commands for a person one that fails is enough; only the last one makes it done.
    if (of.next === "failed" && !isNewest && held != null)
      yield* tx.run(`UPDATE device_commands SET status = 'cancelled', done_at = ? WHERE device_id = ? AND id = ? AND ${OPEN}`, [
        of.now,
        device.id,
        held.command_id ?? 0,
      ])
    if (isNewest || of.next === "failed") {
      const fault = of.next === "done" && !isDeleting ? cardFault(held?.card ?? null) : null
      const person = of.next === "done" ? (isDeleting ? "deleted" : fault === null ? "synced" : "failed") : of.next
      yield* tx.run(
        `UPDATE device_user_sync_status SET status = ?1, error = ?2, updated_at = ?3, synced_at = CASE WHEN ?1 = 'synced' THEN ?3 ELSE synced_at END
          WHERE device_id = ?4 AND pin = ?5`,
        [person, fault ?? of.error, of.now, device.id, of.pin],
      )
    }
    if (isDeleting && of.next === "done") yield* tx.run("DELETE FROM schoolbus_iclock_user WHERE device_id = ? AND pin = ?", [device.id, of.pin])
  })
