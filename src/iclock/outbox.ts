/** Rows of `device_commands`, as those who queue them write and read them. */
import * as Effect from "effect/Effect"
import type { LibsqlError, Tx } from "../libsql/client.ts"
import { momentOf, timestamptz } from "./clock.ts"
import { CLEAR_LOG } from "./command.ts"
import type { Device } from "./device.ts"

/** Ids that the terminal may still know from a lost file are not given out again. */
const KNOWN_SINCE_MS = 86_400_000
const EPOCH_2026_S = 1_767_225_600
/** Finished commands are kept this long, unless they are what a person's state stands on. */
export const HISTORY_MS = 90 * 86_400_000
/** Rows of the history that one question gets. */
const MAX_HISTORY = 1000

export const OPEN = "status IN ('pending', 'sent')"

/** Queues commands of one terminal; the ids they got. Inside the caller's transaction. */
export const queueCommands = (
  tx: Tx,
  of: { readonly school: string; readonly deviceId: number; readonly now: number },
  commands: ReadonlyArray<{ readonly command: string; readonly pin: string | null; readonly expiresMs?: number }>,
): Effect.Effect<ReadonlyArray<number>, LibsqlError> =>
  Effect.gen(function* () {
    if (commands.length === 0) return []
    const [row] = yield* tx.all<{ id: number }>(
      `SELECT coalesce((SELECT max(id) + 1 FROM device_commands WHERE school = ?1 AND device_id = ?2),
                       (SELECT CASE WHEN first_seen_at < ?3 THEN ?4 ELSE 1 END FROM devices WHERE id = ?2), 1) AS id`,
      [of.school, of.deviceId, timestamptz(of.now - KNOWN_SINCE_MS), Math.max(1, Math.floor(of.now / 1000) - EPOCH_2026_S)],
    )
    const first = row?.id ?? 1
    yield* tx.many(
      "INSERT INTO device_commands (school, device_id, id, command, pin, status, attempts, created_at, expires_at) VALUES (?,?,?,?,?,'pending',0,?,?)",
      commands.map(({ command, pin, expiresMs }, i) => [
        of.school,
        BigInt(of.deviceId),
        BigInt(first + i),
        command,
        pin,
        timestamptz(of.now),
        expiresMs === undefined ? null : timestamptz(of.now + expiresMs),
      ]),
    )
    return commands.map((_, i) => first + i)
  })

/** Of these commands, those that no open command of the terminal is already. */
export const notOpen = (tx: Tx, deviceId: number, commands: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<string>, LibsqlError> =>
  Effect.map(
    tx.all<{ command: string }>(
      "SELECT DISTINCT command FROM device_commands WHERE device_id = ? AND status IN ('pending', 'sent') AND pin IS NULL",
      [deviceId],
    ),
    (open) => commands.filter((command) => !open.some((row) => row.command === command)),
  )

/** When the terminal was last cleared: what was stored before is not in its memory any more, and says nothing of what is. "": never. */
const clearedAt = (tx: Tx, device: Device): Effect.Effect<string, LibsqlError> =>
  Effect.map(
    tx.all<{ at: string | null }>(
      `SELECT max(done_at) AS at FROM device_commands WHERE device_id = ? AND command = '${CLEAR_LOG}' AND status = 'done'`,
      [device.id],
    ),
    ([row]) => row?.at ?? "",
  )

/**
 * Why the punches on a terminal may not be cleared now; null: all of them are safe at head office. A terminal counts its records:
 * one that it has twice, as an upload showed, is one punch and two of them. That it came again in another upload shows nothing.
 */
export const unsafeToClear = (tx: Tx, device: Device): Effect.Effect<string | null, LibsqlError> =>
  Effect.gen(function* () {
    const cleared = yield* clearedAt(tx, device)
    const [row] = yield* tx.all<{ waiting: number; stored: number; refused: number }>(
      `SELECT (SELECT count(*) FROM changes c JOIN schoolbus_tables t ON t.id = c.tbl WHERE t.local = 'punches' AND c.op <> 'R') AS waiting,
              (SELECT count(*) + coalesce(sum(w.extra), 0) FROM punches p LEFT JOIN schoolbus_iclock_twin w ON w.punch = p.id
                WHERE p.device_serial = ?1 AND p.received_at > ?2) +
                (SELECT count(*) + coalesce(sum(extra), 0) FROM schoolbus_iclock_reject WHERE serial = ?1 AND at > ?3) AS stored,
              (SELECT count(*) FROM schoolbus_hold h JOIN schoolbus_tables t ON t.id = h.tbl WHERE t.local = 'punches') AS refused`,
      [device.serial, cleared, cleared === "" ? 0 : momentOf(cleared)],
    )
    const { waiting = 0, stored = 0, refused = 0 } = row ?? {}
    if (waiting > 0) return `${waiting} punches are not at head office yet`
    if (refused > 0) return `${refused} punches were refused at head office and wait for a person`
    if (device.punches_reported === null) return "the terminal has not told how many punches it holds"
    return device.punches_reported > stored
      ? `the terminal holds ${device.punches_reported} punches, ${stored} are stored; send QUERY_ATTLOG first`
      : null
  })

export interface CommandRecord {
  readonly id: number
  readonly command: string
  readonly pin: string | null
  readonly status: string
  readonly attempts: number
  readonly result: number | null
  readonly error: string | null
  readonly created_at: string
  readonly expires_at: string | null
  readonly sent_at: string | null
  readonly done_at: string | null
}

/** Newest first. */
export const readHistory = (tx: Tx, deviceId: number, limit: number): Effect.Effect<ReadonlyArray<CommandRecord>, LibsqlError> =>
  tx.all<CommandRecord>(
    `SELECT id, command, pin, status, attempts, result, error, created_at, expires_at, sent_at, done_at FROM device_commands
      WHERE device_id = ? ORDER BY id DESC LIMIT ?`,
    [deviceId, Math.min(Math.max(1, limit), MAX_HISTORY)],
  )

export const dropHistory = (tx: Tx, now: number): Effect.Effect<number, LibsqlError> =>
  tx.run(
    `DELETE FROM device_commands WHERE NOT ${OPEN} AND done_at < ? AND command <> '${CLEAR_LOG}'
        AND id < (SELECT max(id) FROM device_commands newer WHERE newer.device_id = device_commands.device_id)
        AND NOT EXISTS (SELECT 1 FROM device_user_sync_status s WHERE s.device_id = device_commands.device_id AND s.command_id = device_commands.id)`,
    [timestamptz(now - HISTORY_MS)],
  )
