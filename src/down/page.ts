/**
 * A page for a school: what one snapshot of the feed holds for it beyond its cursor, highest class first, in sealed lines. The
 * page is complete when that snapshot has nothing left for the school in any class; only then does it end a cut.
 */
import * as Effect from "effect/Effect"
import type { LibsqlError, LibsqlFile, Tx } from "../libsql/client.ts"
import { sealLine } from "../link/frame.ts"
import { type Header, LINE_BYTES, LINE_ROWS, PAGE_BYTES, type Staged } from "../link/protocol.ts"
import type { Cursor } from "../model/cursor.ts"
import { EVERY_SCHOOL, NOBODY } from "./audience.ts"
import { cutAt, readHub } from "./hub-row.ts"

/** Rows that one statement reads. */
const READ_ROWS = 1000
const CLASSES = [10, 8, 5, 3, 1]

export interface PageRequest {
  readonly school: string
  readonly cursor: Cursor
  readonly staged: Staged | null
  /** The version that the school has; another one is worth a page without rows. */
  readonly manifest?: number | undefined
}

export interface FeedPage {
  readonly header: Header
  /** Sealed, header and trailer included. */
  readonly lines: ReadonlyArray<string>
  readonly complete: boolean
  /** Nothing after the cursor. */
  readonly empty: boolean
}

/** What a school has not received: rows, and bytes of their text. */
interface Left {
  readonly rows: number
  readonly bytes: number
}

interface EntryRow {
  readonly seq: number
  readonly tbl: number
  readonly key: string
  readonly body: string | null
}

interface TableNames {
  readonly name: string
  /** JSON list, in the order of the rows' values. */
  readonly columns: string
}

/** Rows -> sealed lines; rows of one table and class share a line, and rows of one seq always do. */
const makeLines = () => {
  const lines: Array<string> = []
  const lastOf = new Map<number, number>()
  let line: { readonly cls: number; readonly table: TableNames; readonly rows: Array<string>; bytes: number; last: number } | null = null
  const flush = (): void => {
    if (line === null) return
    lastOf.set(line.cls, line.last)
    lines.push(sealLine(`["rows",${line.cls},${line.last},${JSON.stringify(line.table.name)},${line.table.columns},[${line.rows.join(",")}]]`))
    line = null
  }
  const add = (cls: number, table: TableNames, seq: number, text: string): void => {
    const isFull = line !== null && (line.rows.length >= LINE_ROWS || line.bytes >= LINE_BYTES) && line.last !== seq
    if (line !== null && (line.table !== table || line.cls !== cls || isFull)) flush()
    line ??= { cls, table, rows: [], bytes: 0, last: 0 }
    line.rows.push(text)
    line.bytes += text.length
    line.last = seq
  }
  /** `lastOf`: by class, the seq up to which the lines reach. */
  return { add, flush, lines, lastOf: lastOf as ReadonlyMap<number, number> }
}

const countLeft = (tx: Tx, own: number, from: number, staged: Staged | null): Effect.Effect<Left, LibsqlError> =>
  Effect.gen(function* () {
    const left = { rows: 0, bytes: 0 }
    for (const cls of CLASSES) {
      const [row] = yield* tx.all<Left>(
        `SELECT count(*) AS rows, coalesce(sum(length(key) + coalesce(length(body), 4) + 3), 0) AS bytes FROM entry
          WHERE audience IN (?, ?) AND class = ? AND seq > ?`,
        [EVERY_SCHOOL, own, cls, Math.max(from, staged?.after[String(cls)] ?? 0)],
      )
      left.rows += row?.rows ?? 0
      left.bytes += row?.bytes ?? 0
    }
    return left
  })

/** `audienceNo`: the number under which the rows of one school alone stand; null before its first row. */
export const makePages = (db: LibsqlFile, audienceNo: (school: string) => number | null) => {
  /** What a school that goes on exactly after its last page has left. */
  const remaining = new Map<string, { readonly at: string; readonly left: Left }>()

  return (request: PageRequest): Effect.Effect<FeedPage, LibsqlError> => {
    const own = audienceNo(request.school) ?? NOBODY - 1
    return db.read((tx) =>
      Effect.gen(function* () {
        const hub = yield* readHub(tx)
        // Names and rows of one snapshot: a table may be taking another shape at this moment.
        const tables = yield* tx.all<TableNames & { readonly id: number }>("SELECT id, name, columns FROM tables")
        const tableById = new Map(tables.map((table) => [table.id, table]))
        const { cursor } = request
        const known = cursor.epoch === hub.epoch && cursor.seq > 0 && cursor.cut === (yield* cutAt(tx, cursor.seq))
        const full = !known
        const from = known ? cursor.seq : 0
        const staged = request.staged !== null && request.staged.headCut === (yield* cutAt(tx, request.staged.head)) ? request.staged : null
        const headCut = (yield* cutAt(tx, hub.seq)) ?? "0"

        const { add, flush, lines, lastOf } = makeLines()
        let bytes = 0
        let count = 0
        let complete = true
        outer: for (const cls of CLASSES) {
          let after = Math.max(from, staged?.after[String(cls)] ?? 0)
          for (;;) {
            const entries = yield* tx.all<EntryRow>(
              `SELECT * FROM (
                 SELECT seq, tbl, key, body FROM entry WHERE audience = ?1 AND class = ?3 AND seq > ?4
                 UNION ALL SELECT seq, tbl, key, body FROM entry WHERE audience = ?2 AND class = ?3 AND seq > ?4)
               ORDER BY seq, body IS NOT NULL LIMIT ${READ_ROWS}`,
              [EVERY_SCHOOL, own, cls, after],
            )
            for (const entry of entries) {
              const table = tableById.get(entry.tbl)
              if (table === undefined) continue
              // A seq is never split: its tombstone and its row go together.
              if (bytes >= PAGE_BYTES && entry.seq !== after) {
                complete = false
                break outer
              }
              const text = `[${entry.key},${entry.body ?? "null"}]`
              add(cls, table, entry.seq, text)
              bytes += text.length
              count++
              after = entry.seq
            }
            if (entries.length < READ_ROWS) break
          }
        }
        flush()
        let left: Left = { rows: count, bytes }
        if (!complete) {
          const asked = JSON.stringify([from, staged?.after ?? null])
          const last = remaining.get(request.school)
          // After a line that broke the school is elsewhere than the last page would have taken it: counted anew.
          const before = last?.at === asked ? last.left : yield* countLeft(tx, own, from, staged)
          const next = Object.fromEntries([...lastOf].map(([cls, seq]) => [String(cls), seq]))
          const rest = { rows: Math.max(0, before.rows - count), bytes: Math.max(0, before.bytes - bytes) }
          remaining.set(request.school, { at: JSON.stringify([from, { ...staged?.after, ...next }]), left: rest })
          left = { rows: Math.max(before.rows, count), bytes: Math.max(before.bytes, bytes) }
        } else remaining.delete(request.school)
        const header: Header = {
          school: request.school,
          epoch: hub.epoch,
          from,
          full,
          resumed: staged !== null,
          manifest: hub.manifest,
          head: hub.seq,
          headCut,
          left: left.rows,
          leftBytes: left.bytes,
        }
        const empty = count === 0 && staged === null && !full && (request.manifest ?? hub.manifest) === hub.manifest
        return {
          header,
          lines: [sealLine(JSON.stringify(["cut", header])), ...lines, sealLine(JSON.stringify(["page", { rows: count, complete }]))],
          complete,
          empty,
        }
      }),
    )
  }
}
