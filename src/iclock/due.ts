/** Which commands a terminal is to be sent now, and which wait: people until it has said whom it holds, a clearing until all is safe. */
import * as Effect from "effect/Effect"
import type { LibsqlError, Tx } from "../libsql/client.ts"
import { momentOf, timestamptz } from "./clock.ts"
import { CLEAR_LOG, QUERY_USERS, type QueuedCommand } from "./command.ts"
import type { Device } from "./device.ts"
import { knows } from "./dialect.ts"
import { OPEN, unsafeToClear } from "./outbox.ts"

/** A command whose result has not come is sent again after this. */
export const RESEND_MS = 60_000

/** Not sent again unless the terminal has said that it did not do it: twice is not what was asked for. */
const ONCE = "'REBOOT', 'AC_UNLOCK'"

interface Due extends QueuedCommand {
  readonly attempts: number
  readonly pin: string | null
}

/** A terminal that sends nothing of its memory for so long, longer than it waits after a failure, has no more to send. */
const MEMORY_QUIET_MS = 45_000
/** People do not wait longer for a memory: somebody who punches all the time is no memory. */
const MEMORY_MS = 1_800_000

/** What this process knows of terminals that are about to get their first people. */
export interface Beginnings {
  /** Those that have had people sent before, or have told whom they hold: nobody on them is overwritten unasked. */
  readonly met: Set<number>
  /** Since when people wait for the punches that a terminal had before: whose pins those are decides which ones are free. */
  readonly memorySince: Map<number, number>
}

const isRemembering = (tx: Tx, { memorySince }: Beginnings, device: Device, now: number) =>
  Effect.gen(function* () {
    const reported = device.punches_reported ?? 0
    if (reported === 0) return false
    const [row] = yield* tx.all<{ stored: number; last: string | null }>(
      "SELECT count(*) AS stored, max(received_at) AS last FROM punches WHERE device_serial = ?",
      [device.serial],
    )
    if ((row?.stored ?? 0) >= reported) return false
    const since = memorySince.get(device.id) ?? now
    memorySince.set(device.id, since)
    const last = Math.max(since, row?.last == null ? 0 : momentOf(row.last))
    return now - last < MEMORY_QUIET_MS && now - since < MEMORY_MS
  })

const mayFill = (tx: Tx, beginnings: Beginnings, device: Device, now: number) =>
  Effect.gen(function* () {
    const { met } = beginnings
    const users = device.users_reported ?? 0
    if (met.has(device.id) || users + (device.punches_reported ?? 0) === 0) return true
    const [row] = yield* tx.all<{ sent: number; told: number; marks: number }>(
      `SELECT EXISTS (SELECT 1 FROM device_commands WHERE device_id = ?1 AND pin IS NOT NULL AND attempts > 0) AS sent,
              EXISTS (SELECT 1 FROM device_commands WHERE device_id = ?1 AND command = '${QUERY_USERS}' AND NOT ${OPEN}) AS told,
              EXISTS (SELECT 1 FROM schoolbus_roster_dirty) AS marks`,
      [device.id],
    )
    if (row?.sent !== 1) {
      const isTold = users === 0 || row?.told === 1 || !knows(device, QUERY_USERS)
      if (!isTold || (yield* isRemembering(tx, beginnings, device, now)) || row?.marks === 1) return false
    }
    met.add(device.id)
    return true
  })

export interface DueCommands {
  readonly due: ReadonlyArray<Due>
  readonly expired: ReadonlyArray<{ readonly id: number }>
  readonly cleared: Due | undefined
  readonly unsafe: string | null
  readonly askWho: boolean
  readonly isOpen: boolean
}
const NOTHING: DueCommands = { due: [], expired: [], cleared: undefined, unsafe: null, askWho: false, isOpen: false }

/** Commands that are due; how long there is nothing to do when there are none. */
export const readDue = (tx: Tx, beginnings: Beginnings, device: Device, now: number): Effect.Effect<DueCommands, LibsqlError> =>
  Effect.gen(function* () {
    const [open] = yield* tx.all<{ n: number; people: number }>(
      `SELECT count(*) AS n, count(pin) AS people FROM device_commands WHERE device_id = ? AND ${OPEN}`,
      [device.id],
    )
    if ((open?.n ?? 0) === 0) return NOTHING
    // People who are about to be queued in other words wait for that.
    const [whole] = yield* tx.all<{ n: number }>("SELECT EXISTS (SELECT 1 FROM schoolbus_roster_dirty WHERE tbl = ?) AS n", [`=${device.id}`])
    const fill = whole?.n !== 1 && (yield* mayFill(tx, beginnings, device, now))
    const due = yield* tx.all<Due>(
      `SELECT id, command, attempts, pin FROM device_commands WHERE device_id = ?1 AND ${OPEN}
          AND (status = 'pending' OR ((sent_at < ?2 OR sent_at > ?3) AND (error IS NOT NULL OR command NOT IN (${ONCE}))))
          AND (expires_at IS NULL OR expires_at > ?3) AND (?4 OR pin IS NULL) ORDER BY id LIMIT 50`,
      [device.id, timestamptz(now - RESEND_MS), timestamptz(now), fill],
    )
    const expired = yield* tx.all<{ id: number }>(`SELECT id FROM device_commands WHERE device_id = ? AND ${OPEN} AND expires_at <= ?`, [
      device.id,
      timestamptz(now),
    ])
    const cleared = due.find(({ command }) => command === CLEAR_LOG)
    const unsafe =
      cleared === undefined
        ? null
        : due.some(({ id, command }) => id < cleared.id && command === "INFO") || (yield* isAsked(tx, device, cleared.id))
          ? "waiting for the terminal to tell how many punches it holds"
          : yield* unsafeToClear(tx, device)
    const askWho = !fill && (device.users_reported ?? 0) > 0 && whole?.n !== 1 && (open?.people ?? 0) > 0 && !(yield* wasAsked(tx, device))
    return { due: unsafe === null ? due : due.filter((one) => one !== cleared), expired, cleared, unsafe, askWho, isOpen: true }
  })
const wasAsked = (tx: Tx, device: Device) =>
  Effect.map(
    tx.all<{ n: number }>("SELECT EXISTS (SELECT 1 FROM device_commands WHERE device_id = ? AND command = ?) AS n", [device.id, QUERY_USERS]),
    ([row]) => row?.n === 1,
  )
const isAsked = (tx: Tx, device: Device, before: number) =>
  Effect.map(
    tx.all<{ n: number }>(`SELECT EXISTS (SELECT 1 FROM device_commands WHERE device_id = ? AND id < ? AND command = 'INFO' AND ${OPEN}) AS n`, [
      device.id,
      before,
    ]),
    ([row]) => row?.n === 1,
  )
