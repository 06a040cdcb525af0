/** Punches as CSV that spreadsheets open: UTF-8 with a mark, CRLF, and no field that would be taken for a formula. */
import * as Effect from "effect/Effect"
import { readText, safely } from "../libsql/cells.ts"
import { ident, type LibsqlError, type Tx } from "../libsql/client.ts"
import { readSchool } from "./school.ts"

/** Punches per page. */
export const PAGE = 5000

export const CSV_HEADER = [
  "terminal",
  "serial",
  "pin",
  "person",
  "name",
  "time",
  "zone",
  "time_utc",
  "status",
  "verify",
  "work_code",
  "flags",
  "received_at",
] as const

/** A leading `=`, `+`, `-`, `@`, TAB or CR makes a formula in spreadsheets; an apostrophe in front does not. */
export const csvField = (text: string): string => {
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe
}

export const csvLine = (fields: ReadonlyArray<string>): string => `${fields.map(csvField).join(",")}\r\n`

export const csvStart = (): string => `\ufeff${csvLine(CSV_HEADER)}`

export interface PunchFilter {
  /** Serial of one terminal. */
  readonly serial: string | null
  /** Wall clocks, `"2026-03-03"` or longer; `to` is included with all that begins with it. */
  readonly from: string | null
  readonly to: string | null
}

export interface PunchPage {
  readonly lines: string
  /** Where the next page begins; null: this was the last one. */
  readonly next: number | null
}

/** In the order in which they came. */
export const punchPage = (tx: Tx, filter: PunchFilter, after: number): Effect.Effect<PunchPage, LibsqlError> =>
  Effect.gen(function* () {
    const state = yield* readSchool(tx)
    if (state === null) return { lines: "", next: null }
    const names = Object.entries(state.manifest.devices?.people ?? {}).flatMap(([name, rule]) => {
      const table = state.manifest.tables.find((one) => one.name === name)
      return table === undefined
        ? []
        : [
            `WHEN '${name.replaceAll("'", "''")}' THEN (SELECT ${safely(ident(rule.name))} FROM ${ident(table.local)} WHERE CAST(${ident(rule.id)} AS TEXT) = p.person_id)`,
          ]
    })
    const rows = yield* tx.values(
      `SELECT p.rowid, d.name, p.device_serial, p.pin, p.person_id, ${names.length === 0 ? "NULL" : `CASE p.person_table ${names.join(" ")} END`}, p.at, p.zone,
              p.at_utc, p.status, p.verify, p.work_code, p.flags, p.received_at
         FROM (SELECT rowid, * FROM punches WHERE rowid > ?1 AND (?2 IS NULL OR device_serial = ?2) AND (?3 IS NULL OR at >= ?3)
                  AND (?4 IS NULL OR at <= ?4 OR substr(at, 1, length(?4)) = ?4) ORDER BY rowid LIMIT ${PAGE}) p
         LEFT JOIN devices d ON d.serial = p.device_serial ORDER BY p.rowid`,
      [after, filter.serial, filter.from, filter.to],
    )
    const lines = rows.map(([, ...cells]) => csvLine(cells.map((cell) => (cell == null ? "" : readText(cell))))).join("")
    return { lines, next: rows.length < PAGE ? null : Number(rows.at(-1)?.[0]) }
  })
