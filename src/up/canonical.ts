/**
 * Values that schools sent -> as Postgres prints them, or the reason why the column cannot hold them exactly. A three-way
 * comparison of anything else finds conflicts that are none (`1.5` beside `1.50`). Nothing is ever cut or rounded to fit.
 *
 * Postgres itself does the work: one statement for all values of a push, halved where it fails until the bad value is found.
 */
import * as Effect from "effect/Effect"
import type { Kind, Wire } from "../model/value.ts"
import { isTransient, type PostgresError, type Session } from "../postgres/client.ts"
import { TO_HUB, TO_OFFICE } from "../postgres/settings.ts"
import { asKey, asStored, equals, listsOf } from "./lists.ts"
import type { ColumnShape } from "./shape.ts"

/** Columns cast by one statement. */
const COLUMNS_AT_ONCE = 400

export type Canonical = { readonly text: string | null } | { readonly refused: string }

export interface Wanted {
  readonly column: ColumnShape
  readonly texts: ReadonlyArray<string>
}

/** Postgres text -> wire: what `JSON.parse(textToToken(…))` gives. */
export const textToWire = (kind: Kind, text: string | null): Wire => {
  if (text === null) return null
  switch (kind) {
    case "int":
      return Number(text)
    case "float":
      return text === "NaN" || text === "Infinity" || text === "-Infinity" ? text : Number(text)
    case "bool":
      return text === "t" || text === "true"
    case "bytea":
      return text.startsWith("\\x") ? text.slice(2) : text
    default:
      return text
  }
}

const INTEGER_LIMIT: Readonly<Record<string, bigint>> = { int2: 1n << 15n, int4: 1n << 31n, int8: 1n << 63n }
/** In the range of every type but the smallest, and in that of the largest. */
const SMALL_INTEGER = /^(0|-?[1-9]\d{0,8})$/
const LARGE_INTEGER = /^(0|-?[1-9]\d{0,17})$/
const TIMES = /^(timestamp|timestamptz|time|timetz|interval)$/
const DAYS = /^(timestamp|timestamptz|date)$/

/** True when the text is certainly what Postgres prints for it, so that Postgres need not be asked. */
export const isPlain = (column: ColumnShape, text: string): boolean => {
  if (column.isDomain) return false
  const limit = INTEGER_LIMIT[column.typname]
  if (limit !== undefined) {
    if (column.typname === "int8" ? LARGE_INTEGER.test(text) : column.typname === "int4" && SMALL_INTEGER.test(text)) return true
    if (!/^(0|-?[1-9]\d{0,18})$/.test(text)) return false
    const value = BigInt(text)
    return value < limit && value >= -limit
  }
  switch (column.typname) {
    case "text":
      return true
    case "varchar":
      return !column.isLimited || text.length <= Number(/\((\d+)\)$/.exec(column.type)?.[1] ?? 0)
    case "numeric":
      return isPlainNumeric(column, text)
    case "float8":
      return isPlainDouble(text)
    case "date":
      return isDay(text)
    case "timestamp":
    case "timestamptz":
      return !column.isLimited && isMoment(text, column.typname === "timestamp" ? "" : "+00")
    case "bool":
      return text === "t" || text === "f"
    case "uuid":
      return /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/.test(text)
    case "bytea":
      return /^\\x(?:[0-9a-f]{2})*$/.test(text)
    default:
      return false
  }
}

/** Postgres keeps as many decimals as it is given, or as many as are declared; it has no negative zero. */
const isPlainNumeric = (column: ColumnShape, text: string): boolean => {
  const digits = /^-?(0|[1-9]\d{0,99})(?:\.(\d{1,99}))?$/.exec(text)
  if (digits === null || /^-[0.]+$/.test(text)) return false
  if (!column.isLimited) return true
  const declared = /\((\d+),(\d+)\)$/.exec(column.type)
  const [precision, scale] = [Number(declared?.[1]), Number(declared?.[2])]
  return (digits[2] ?? "").length === scale && (digits[1] ?? "").length <= precision - scale
}

/** Between these both print the fewest digits that tell the number apart, without an exponent. */
const isPlainDouble = (text: string): boolean => {
  const value = Number(text)
  return String(value) === text && (value === 0 || (Math.abs(value) >= 1e-4 && Math.abs(value) < 1e15))
}

const MONTH_DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
const isDay = (text: string): boolean => {
  if (!/^\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])$/.test(text) || text.startsWith("0000")) return false
  const digit = (i: number): number => text.charCodeAt(i) - 48
  const year = digit(0) * 1000 + digit(1) * 100 + digit(2) * 10 + digit(3)
  const month = digit(5) * 10 + digit(6)
  const day = digit(8) * 10 + digit(9)
  const isLeap = year % 4 === 0 && (year % 100 !== 0 || year % 400 === 0)
  return day <= (MONTH_DAYS[month - 1] ?? 0) || (month === 2 && day === 29 && isLeap)
}
const isMoment = (text: string, zone: string): boolean =>
  text.endsWith(zone) &&
  /^ (?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{0,5}[1-9])?$/.test(text.slice(10, text.length - zone.length)) &&
  isDay(text.slice(0, 10))

const short = (text: string): string => JSON.stringify(text.length > 60 ? `${text.slice(0, 60)}…` : text)

/** What no column may be sent, whatever Postgres would make of it. */
const objection = (column: ColumnShape, text: string): string | null => {
  if (text.includes("\0")) return "text contains a NUL character, which Postgres cannot store"
  if (!text.isWellFormed()) return "text contains half a character (a lone surrogate)"
  // "now" and "yesterday" would mean another day at each attempt, 01/02/2026 another one in each country.
  if (DAYS.test(column.typname) && !/^(\d{4,}-\d\d?-\d\d?|-?infinity)/i.test(text)) return `${short(text)} is not a date of the form 2026-01-31`
  if (TIMES.test(column.typname) && /\.\d{6}\d*[1-9]/.test(text)) return `${short(text)} is finer than the microseconds that Postgres keeps`
  return null
}

/** True when the text stays as it is: the column holds it so, and prints it so. Of other types than texts only what has a plain form is. */
export const isSettled = (column: ColumnShape, text: string): boolean =>
  isPlain(column, text) && ((column.typname !== "text" && column.typname !== "varchar") || objection(column, text) === null)

/** Of each wanted column, in order, its texts -> their canonical form. */
export const canonicalise = (
  session: Session,
  wanted: ReadonlyArray<Wanted>,
): Effect.Effect<ReadonlyArray<ReadonlyMap<string, Canonical>>, PostgresError> =>
  Effect.gen(function* () {
    const found = wanted.map(() => new Map<string, Canonical>())
    const asked: Array<Asked> = []
    wanted.forEach(({ column, texts }, i) => {
      const result = found[i] as Map<string, Canonical>
      const open = new Set<string>()
      for (const text of texts) {
        if (result.has(text)) continue
        const refused = objection(column, text)
        if (refused !== null) result.set(text, { refused })
        else if (isPlain(column, text)) result.set(text, { text })
        else open.add(text)
      }
      if (open.size > 0) asked.push({ column, texts: [...open], result })
    })
    for (let at = 0; at < asked.length; at += COLUMNS_AT_ONCE) yield* ask(session, asked.slice(at, at + COLUMNS_AT_ONCE))
    return found
  })

interface Asked {
  readonly column: ColumnShape
  readonly texts: ReadonlyArray<string>
  readonly result: Map<string, Canonical>
}

const ask = (session: Session, asked: ReadonlyArray<Asked>): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const list = asked.map(({ column }, i) => {
      const stored = asStored(column, `u.u${i}`)
      return `${stored}, ${column.isLimited ? equals(column, asKey(column, stored), `u.u${i}`) : "true"}`
    })
    // A domain's check may ask functions of head office.
    yield* session.execute(`SAVEPOINT canonical; ${TO_OFFICE}`)
    const rows = yield* session
      .texts(
        `SELECT ${list.join(", ")} FROM ${listsOf(asked.length)}`,
        asked.map(({ texts }) => texts),
      )
      .pipe(Effect.catch((error) => (isTransient(error) ? Effect.fail(error) : Effect.succeed(error))))
    if (!("length" in rows)) {
      yield* session.execute("ROLLBACK TO SAVEPOINT canonical; RELEASE SAVEPOINT canonical")
      return yield* askApart(session, asked, rows)
    }
    yield* session.execute(`RELEASE SAVEPOINT canonical; ${TO_HUB}`)
    asked.forEach(({ column, texts, result }, i) => {
      texts.forEach((text, row) => {
        const printed = rows[row]?.[i * 2] ?? null
        const isExact =
          rows[row]?.[i * 2 + 1] === "t" && !(column.typname === "float4" && Number(printed) !== Number(text) && !Number.isNaN(Number(text)))
        result.set(
          text,
          isExact ? { text: printed } : { refused: `${short(text)} would become ${short(printed ?? "")} in a column of type ${column.type}` },
        )
      })
    })
  })

/** Something in `asked` cannot be cast: the halves are tried alone. */
const askApart = (session: Session, asked: ReadonlyArray<Asked>, error: PostgresError): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    const [only, ...others] = asked
    if (only === undefined) return
    if (others.length > 0) {
      const half = Math.ceil(asked.length / 2)
      yield* ask(session, asked.slice(0, half))
      return yield* ask(session, asked.slice(half))
    }
    const [text] = only.texts
    if (only.texts.length === 1 && text !== undefined) {
      only.result.set(text, { refused: `${error.message} (column ${only.column.name}, ${only.column.type})` })
      return
    }
    const half = Math.ceil(only.texts.length / 2)
    yield* ask(session, [{ ...only, texts: only.texts.slice(0, half) }])
    yield* ask(session, [{ ...only, texts: only.texts.slice(half) }])
  })
