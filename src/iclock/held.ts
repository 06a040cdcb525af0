/** What stands in the file about people and terminals: who should be on one, what it confirmed, and what it says itself. */
import * as Effect from "effect/Effect"
import { readText, safely } from "../libsql/cells.ts"
import { ident, type LibsqlError, type Tx } from "../libsql/client.ts"
import type { DeviceRules, Manifest, Table } from "../model/table.ts"
import type { Cell } from "../model/value.ts"
import { normalCard } from "./cdata.ts"
import { momentOf, timestamptz } from "./clock.ts"
import { cardFault, isDelete, QUERY_USERS } from "./command.ts"
import type { Device } from "./device.ts"
import type { School } from "./school.ts"
import { type ForeignUser, hasLetters, type Held, type Person, type Roster } from "./roster.ts"

/** A list that is shorter than the terminal's own count is taken for whole after this: more of it does not come. */
const LIST_WHOLE_MS = 300_000

type PeopleRule = DeviceRules["people"][string]

const NOT_ACTIVE = "'0', 'f', 'false', 'n', 'no', 'inactive', ''"

const activeSql = (column: string, values: ReadonlyArray<string> | undefined): string =>
  values === undefined
    ? `(${column} IS NOT NULL AND lower(${column}) NOT IN (${NOT_ACTIVE}))`
    : `coalesce(CAST(${column} AS TEXT), '') IN (${values.map((value) => `'${value.replaceAll("'", "''")}'`).join(", ")})`

/** What the person's class is called, or its id where nobody says. */
const groupSql = (manifest: Manifest, people: Table, rule: PeopleRule): string => {
  if (rule.group === undefined) return "NULL"
  const id = `people.${ident(rule.group)}`
  const groups = manifest.tables.find((one) => one.name === rule.groupFrom?.table)
  const reference = people.references.find((one) => one.columns.length === 1 && one.columns[0] === rule.group && one.table === groups?.name)
  const key = reference?.to[0] ?? groups?.key[0]
  if (groups === undefined || rule.groupFrom === undefined || key === undefined) return safely(id)
  const name = `(SELECT g.${ident(rule.groupFrom.name)} FROM ${ident(groups.local)} g WHERE g.${ident(key)} = ${id})`
  return safely(`coalesce(${name}, ${id})`)
}

/** People whom terminals should hold, by the config's rule: active, with a card or pin where the rule names such columns. */
export const readPeople = (tx: Tx, manifest: Manifest): Effect.Effect<ReadonlyArray<Person>, LibsqlError> =>
  Effect.gen(function* () {
    const people: Array<Person> = []
    for (const [name, rule] of Object.entries(manifest.devices?.people ?? {})) {
      const table = manifest.tables.find((one) => one.name === name)
      if (table === undefined) continue
      const column = (wanted: string | undefined) => (wanted === undefined ? "NULL" : safely(ident(wanted)))
      const isActive = rule.active === undefined ? "1" : activeSql(ident(rule.active), rule.activeValues)
      const carries = [rule.card, rule.pin].flatMap((one) => (one === undefined ? [] : [`coalesce(${ident(one)}, '') <> ''`]))
      const rows = yield* tx.values(
        `SELECT ${[rule.id, rule.name, rule.card, rule.pin].map(column).join(", ")}, ${groupSql(manifest, table, rule)} FROM ${ident(table.local)} AS people
          WHERE ${isActive} ${carries.length === 0 ? "" : `AND (${carries.join(" OR ")})`} ORDER BY ${ident(rule.id)}`,
      )
      for (const row of rows) {
        const text = (cell: Cell | undefined): string | null => (cell == null ? null : readText(cell).trim() || null)
        people.push({ table: name, id: text(row[0]) ?? "", name: text(row[1]) ?? "", card: text(row[2]), pin: text(row[3]), group: text(row[4]) })
      }
    }
    return people
  })

/** Of a mapping `m` and its state `s`: this file gave the pin, and nothing about it has gone to the terminal yet. */
const UNSENT = `(s.command_id IS NOT NULL AND s.synced_at IS NULL
                AND NOT EXISTS (SELECT 1 FROM device_commands d WHERE d.device_id = m.device_id AND d.pin = m.pin AND d.attempts > 0)
                AND m.from_at >= (SELECT min(d.created_at) FROM device_commands d WHERE d.device_id = m.device_id AND d.pin = m.pin))`

/** Pins of which the terminal has not been told yet, and since when (ms since 1970) they are their owners'. */
export const readUntold = (tx: Tx, device: Pick<Device, "id">): Effect.Effect<ReadonlyMap<string, number>, LibsqlError> =>
  Effect.map(
    tx.all<{ pin: string; from_at: string }>(
      `SELECT m.pin, m.from_at FROM device_user_mappings m
         JOIN device_user_sync_status s ON s.school = m.school AND s.device_id = m.device_id AND s.pin = m.pin
        WHERE m.device_id = ? AND ${UNSENT}`,
      [device.id],
    ),
    (rows) => new Map(rows.map(({ pin, from_at }) => [pin, momentOf(from_at)])),
  )

export interface HeldRow {
  readonly pin: string
  readonly person_table: string
  readonly person_id: string
  readonly name: string | null
  readonly card: string | null
  readonly status: "unknown" | "pending" | "sent" | "synced" | "failed" | "deleted"
  readonly attempts: number
  readonly error: string | null
  readonly synced_at: string | null
  /** Its newest command; null: given in an earlier life of the file. */
  readonly command: string | null
  readonly left: number
  readonly unsent: number
  /** 1: confirmed before the terminal's last own list, which does not have it. */
  readonly missing: number
  /** 1: removed before that list, which still has it. */
  readonly lingers: number
  /** 1: confirmed before that list, which has it with `listed_card`. */
  readonly listed: number
  readonly listed_card: string | null
}

export interface Reading {
  readonly rows: ReadonlyArray<HeldRow>
  /** When the list that counts was asked for; null: never, or it has not come whole. */
  readonly listedAt: string | null
}

/** Pins of one terminal with their newest command, beside what the terminal itself listed when it was last asked. */
export const readHeld = (tx: Tx, school: string, device: Device, now: number): Effect.Effect<Reading, LibsqlError> =>
  Effect.gen(function* () {
    const [asked] = yield* tx.all<{ at: string | null; n: number }>(
      `SELECT q.at, (SELECT count(*) FROM schoolbus_iclock_user u WHERE u.device_id = ?2 AND u.at >= unixepoch(substr(q.at, 1, 19)) * 1000) AS n
         FROM (SELECT max(sent_at) AS at FROM device_commands WHERE school = ?1 AND device_id = ?2 AND command = '${QUERY_USERS}' AND status = 'done') q`,
      [school, device.id],
    )
    const at = asked?.at ?? null
    const n = asked?.n ?? 0
    const askedMs = at === null ? 0 : Date.parse(`${at.slice(0, 19).replace(" ", "T")}Z`)
    const counted = device.memory?.countedAt != null && device.memory.countedAt >= askedMs ? device.users_reported : null
    const isWhole = at !== null && (counted !== null && n >= counted ? true : n > 0 && (counted === null || now - askedMs > LIST_WHOLE_MS))
    const rows = yield* tx.all<HeldRow>(
      `WITH listed AS (
         SELECT u.pin, u.card FROM schoolbus_iclock_user u WHERE u.device_id = ?2 AND ?3 IS NOT NULL AND u.at >= unixepoch(substr(?3, 1, 19)) * 1000
       )
       SELECT m.pin, m.person_table, m.person_id, s.name, s.card, coalesce(s.status, 'unknown') AS status, coalesce(s.attempts, 0) AS attempts, s.error,
              s.synced_at, c.command, m.to_at IS NOT NULL AS left,
              coalesce(${UNSENT}, 0) AS unsent,
              coalesce(?4 AND s.status = 'synced' AND s.synced_at < ?3 AND l.pin IS NULL, 0) AS missing,
              coalesce(s.status = 'deleted' AND s.updated_at < ?3 AND l.pin IS NOT NULL, 0) AS lingers,
              coalesce(s.status = 'synced' AND s.synced_at < ?3 AND l.pin IS NOT NULL, 0) AS listed, l.card AS listed_card
         FROM device_user_mappings m
         LEFT JOIN device_user_sync_status s ON s.school = m.school AND s.device_id = m.device_id AND s.pin = m.pin
         LEFT JOIN device_commands c ON c.school = s.school AND c.device_id = s.device_id AND c.id = s.command_id
         LEFT JOIN listed l ON l.pin = m.pin
        WHERE m.school = ?1 AND m.device_id = ?2`,
      [school, device.id, at, isWhole],
    )
    return { rows, listedAt: isWhole ? at : null }
  })

/** The terminal holds another card than the one that it confirmed. */
export const wrongCard = (row: HeldRow): boolean =>
  row.listed === 1 && row.card !== null && cardFault(row.card) === null && normalCard(row.card) !== row.listed_card

export const isRemoved = (row: HeldRow): boolean => (row.command === null ? row.left === 1 && row.status === "deleted" : isDelete(row.command))

export const readForeign = (
  tx: Tx,
  school: string,
  device: Device,
): Effect.Effect<ReadonlyArray<ForeignUser & { readonly name: string }>, LibsqlError> =>
  Effect.map(
    tx.all<{ pin: string; name: string; card: string | null; privilege: number }>(
      `SELECT u.pin, u.name, u.card, u.privilege FROM schoolbus_iclock_user u
        WHERE u.device_id = ?2 AND NOT EXISTS (
          SELECT 1 FROM device_user_mappings m
            LEFT JOIN device_user_sync_status s ON s.school = m.school AND s.device_id = m.device_id AND s.pin = m.pin
           WHERE m.school = ?1 AND m.device_id = ?2 AND m.pin = u.pin
             AND NOT coalesce(${UNSENT}, 0))
        ORDER BY length(u.pin), u.pin`,
      [school, device.id],
    ),
    (rows) => rows.map(({ pin, name, card, privilege }) => ({ pin, name, card, privileged: privilege > 0 })),
  )

export interface UnknownPin {
  readonly pin: string
  readonly punches: number
  readonly first: string
  readonly last: string
}

/** Pins of punches that nobody is known for. */
export const readUnknown = (tx: Tx, school: string, device: Device): Effect.Effect<ReadonlyArray<UnknownPin>, LibsqlError> =>
  tx.all<UnknownPin>(
    `SELECT pin, count(*) AS punches, min(at) AS first, max(at) AS last FROM punches
      WHERE school = ? AND device_serial = ? AND person_id IS NULL GROUP BY pin ORDER BY length(pin), pin`,
    [school, device.serial],
  )

export const readRoster = (
  tx: Tx,
  { school, manifest }: School,
  device: Device,
  people: ReadonlyArray<Person>,
  of: { readonly again: Roster["again"]; readonly now: number },
): Effect.Effect<Roster & Pick<Reading, "listedAt">, LibsqlError> =>
  Effect.gen(function* () {
    // A person has the same number on every terminal where it is free; the one of this terminal counts.
    const mappings = yield* tx.all<{ pin: string; person_table: string; person_id: string; here: number }>(
      `SELECT pin, person_table, person_id, device_id = ?2 AS here FROM device_user_mappings WHERE school = ?1
        ORDER BY device_id = ?2, to_at IS NULL, device_id, from_at`,
      [school, device.id],
    )
    // What is set again moves to the end: in a map it would keep the place of another terminal's row.
    const taken = new Map<string, { readonly table: string; readonly id: string; readonly here: boolean }>()
    for (const { pin, person_table: table, person_id: id, here } of mappings) {
      taken.delete(pin)
      taken.set(pin, { table, id, here: here === 1 })
    }
    const { rows, listedAt } = yield* readHeld(tx, school, device, of.now)
    const held = rows.filter((row) => {
      // Without its table nothing is known about a person; that is no reason to remove them.
      const isRuled = manifest.devices?.people[row.person_table] !== undefined
      return !isRuled || manifest.tables.some((table) => table.name === row.person_table)
    })
    const unknown = new Set((yield* readUnknown(tx, school, device)).map(({ pin }) => pin))
    const [listed] = yield* tx.all<{ n: number }>(
      "SELECT EXISTS (SELECT 1 FROM schoolbus_iclock_user WHERE device_id = ? AND pin GLOB '*[A-Za-z]*') AS n",
      [device.id],
    )
    return {
      people,
      held: held.map(
        (row): Held => ({
          pin: row.pin,
          table: row.person_table,
          id: row.person_id,
          name: row.name,
          card: row.card,
          status: row.status,
          removing: isRemoved(row),
          differs: row.missing === 1 || row.lingers === 1 || wrongCard(row),
          unsent: row.unsent === 1,
        }),
      ),
      taken,
      foreign: yield* readForeign(tx, school, device),
      unknown,
      letters: listed?.n === 1 || [...unknown].some(hasLetters),
      policy: manifest.devices?.terminalUsers ?? "adopt",
      again: of.again,
      listedAt,
    }
  })

/** What a whole list does not have is not on the terminal any more. */
export const forgetUnlisted = (tx: Tx, device: Device, listedAt: string): Effect.Effect<number, LibsqlError> =>
  tx.run("DELETE FROM schoolbus_iclock_user WHERE device_id = ?1 AND at < unixepoch(substr(?2, 1, 19)) * 1000", [device.id, listedAt])

/** Terminals whose hour is not the one that they were last told: daylight saving began or ended, or the zone was corrected. */
export const checkedSince = (tx: Tx, device: Device, since: number): Effect.Effect<boolean, LibsqlError> =>
  Effect.map(
    tx.all<{ n: number }>("SELECT EXISTS (SELECT 1 FROM device_commands WHERE device_id = ? AND command = 'CHECK' AND created_at > ?) AS n", [
      device.id,
      timestamptz(since),
    ]),
    ([row]) => row?.n === 1,
  )
