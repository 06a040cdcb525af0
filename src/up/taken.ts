/**
 * Changes that the hub has from another life of the same file. A file that is put back from a backup, or copied, still holds writes
 * that were pushed since; in its new life they go up once more. Each change leaves a print, and one that has the print of a change
 * of the same number is that change: it keeps its verdict, and writes nothing.
 */
import { Buffer } from "node:buffer"
import * as Effect from "effect/Effect"
import type { Change, Exception } from "../model/change.ts"
import { literal, type PostgresError, type Session } from "../postgres/client.ts"

/** A file that is put back from before then brings its writes as new ones. */
const KEEP_DAYS = 120
const ENTRY = 8

type Printed = Pick<Change, "id" | "at" | "table" | "key">

const FNV_PRIME = 0x01000193

const mix = (print: number, text: string): number => {
  let mixed = print
  for (let i = 0; i < text.length; i++) mixed = Math.imul(mixed ^ text.charCodeAt(i), FNV_PRIME)
  return mixed
}

/**
 * uint32, of what no later write and no other manifest gives another form. A file that went on otherwise gives the number at another
 * time, or to another row.
 */
const printOf = ({ at, table, key }: Printed): number => {
  let print = mix(Math.trunc(at) % 2 ** 32, table)
  for (const value of key) print = mix(Math.imul(print, FNV_PRIME), String(value))
  return print >>> 0
}

interface Prints {
  readonly first: number
  readonly last: number
  /** Of each change its number, counted from `first`, and its print: two uint32. */
  readonly bytes: Uint8Array
}

const printsOf = (changes: ReadonlyArray<Printed>): Prints => {
  let [first, last] = [Infinity, -Infinity]
  for (const { id } of changes) {
    if (id < first) first = id
    if (id > last) last = id
  }
  const bytes = new DataView(new ArrayBuffer(ENTRY * changes.length))
  let at = 0
  for (const change of changes) {
    bytes.setUint32(at, change.id - first)
    bytes.setUint32(at + 4, printOf(change))
    at += ENTRY
  }
  return { first, last, bytes: new Uint8Array(bytes.buffer) }
}

/** SQL that keeps what a batch has brought; "" when that is nothing. */
export const keepPrints = (incarnation: string, batch: number, changes: ReadonlyArray<Printed>): string => {
  if (changes.length === 0) return ""
  const { first, last, bytes } = printsOf(changes)
  return `INSERT INTO schoolbus.taken (incarnation, batch, first_change, last_change, prints)
     VALUES (${literal(incarnation)}::uuid, ${batch}, ${first}, ${last}, '\\x${Buffer.from(bytes).toString("hex")}');`
}

/** Those of the changes that these prints name. */
const among = (prints: Prints, changes: ReadonlyMap<number, Printed>): ReadonlyArray<number> => {
  const view = new DataView(prints.bytes.buffer, prints.bytes.byteOffset, prints.bytes.byteLength)
  const found: Array<number> = []
  for (let i = 0; i < prints.bytes.length; i += ENTRY) {
    const change = changes.get(prints.first + view.getUint32(i))
    if (change !== undefined && view.getUint32(i + 4) === printOf(change)) found.push(change.id)
  }
  return found
}

export interface Life {
  readonly school: string
  readonly incarnation: string
  readonly number: number
  readonly origin: string
}

/** The first life and this one know of each other from here on. */
export const joinLives = (session: Session, { school, incarnation, origin }: Life): Effect.Effect<void, PostgresError> =>
  Effect.gen(function* () {
    // Written anew, so that a push of that life which waits for this one sees it.
    yield* session.execute(
      `INSERT INTO schoolbus.incarnations AS i (id, school, origin) VALUES ($1::text::uuid, $2, $1::text::uuid)
       ON CONFLICT (id) DO UPDATE SET origin = excluded.origin WHERE i.school = excluded.school`,
      [origin, school],
    )
    yield* session.execute("UPDATE schoolbus.incarnations SET origin = $2::text::uuid WHERE id = $1::text::uuid", [incarnation, origin])
  })

/**
 * Which of a batch's changes another life has brought, with what is still said of them. Their open records become this life's, for
 * its next edits are joined to them.
 */
export const findTaken = (
  session: Session,
  life: Life,
  changes: ReadonlyArray<Printed>,
): Effect.Effect<{ readonly ids: ReadonlySet<number>; readonly exceptions: ReadonlyArray<Exception> }, PostgresError> =>
  Effect.gen(function* () {
    const ids = new Set<number>()
    const exceptions: Array<Exception> = []
    if (changes.length === 0) return { ids, exceptions }
    const { incarnation, number, origin, school } = life
    // All lives of the file wait for one another.
    yield* session.execute("SELECT 1 FROM schoolbus.incarnations WHERE id = $1::text::uuid FOR UPDATE", [origin])
    const { first, last } = printsOf(changes)
    const found = yield* session.query<{ incarnation: string; batch: string; first: string; prints: string; exceptions: string }>(
      `SELECT t.incarnation::text AS incarnation, t.batch::text AS batch, t.first_change::text AS first, encode(t.prints, 'hex') AS prints, l.exceptions
         FROM schoolbus.incarnations i JOIN schoolbus.taken t ON t.incarnation = i.id
         JOIN schoolbus.ledger l ON l.incarnation = t.incarnation AND l.batch = t.batch
        WHERE i.origin = $1::text::uuid AND i.school = $2 AND i.id <> $3::text::uuid
          AND t.first_change <= $5::text::bigint AND t.last_change >= $4::text::bigint`,
      [origin, school, incarnation, String(first), String(last)],
    )
    const byId = new Map(changes.map((change) => [change.id, change]))
    for (const batch of found) {
      const prints = { first: Number(batch.first), last, bytes: Buffer.from(batch.prints, "hex") }
      const own = new Set(among(prints, byId).filter((id) => !ids.has(id)))
      if (own.size === 0) continue
      for (const id of own) ids.add(id)
      exceptions.push(...(JSON.parse(batch.exceptions) as ReadonlyArray<Exception>).filter(({ id }) => own.has(id)))
      yield* session.execute(
        "UPDATE schoolbus.stored SET incarnation = $1::text::uuid, batch = $2::text::bigint WHERE incarnation = $3::text::uuid AND batch = $4::text::bigint",
        [incarnation, String(number), batch.incarnation, batch.batch],
      )
    }
    const records = exceptions.flatMap(({ record }) => (record === undefined ? [] : [record]))
    for (const table of records.length === 0 ? [] : ["conflicts", "quarantine"])
      yield* session.execute(
        `UPDATE schoolbus.${table} SET incarnation = $1::text::uuid, batch = $2::text::bigint WHERE id = ANY ($3::text[]::uuid[]) AND status = 'open'`,
        [incarnation, String(number), records],
      )
    return { ids, exceptions }
  })

export const forgetTaken = (session: Session): Effect.Effect<unknown, PostgresError> =>
  session.execute(`DELETE FROM schoolbus.taken WHERE at < now() - interval '${KEEP_DAYS} days'`)
