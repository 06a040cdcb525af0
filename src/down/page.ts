/**
 * A page for a school: what one snapshot of the feed holds for it beyond its cursor, highest class first, in sealed lines. The
 * page is complete when that snapshot has nothing left for the school in any class; only then does it end a cut.
 */
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { elapsedMs } from "../elapsed.ts"
import type { LibsqlError, LibsqlFile, Tx } from "../libsql/client.ts"
import { type Piece, rowsOfPiece, type Step } from "../libsql/walk.ts"
import { sealLine } from "../link/frame.ts"
import { type Header, LINE_BYTES, LINE_ROWS, MAX_ROW_BYTES, PAGE_BYTES, type RowsLine, type Staged } from "../link/protocol.ts"
import type { Cursor } from "../model/cursor.ts"
import { EVERY_SCHOOL, NOBODY } from "./audience.ts"

/** Rows that one statement reads: few at first, as they may be large; then as many of such rows as a line holds. */
const FIRST_ROWS = 32
/** More than one seq has. */
const LEAST_ENTRIES = 8
/** Rows that come as one text become one line up to this much of it; more may be a few large rows. */
const WHOLE_LINE_BYTES = 4 * LINE_BYTES
const PIECES = {
  firstRows: FIRST_ROWS,
  pieceRows: LINE_ROWS,
  pieceBytes: LINE_BYTES,
  mostPieceBytes: WHOLE_LINE_BYTES,
}
/**
 * A page for a receiver that takes a page as soon as it is there. While much is being written, few and large pages reach the head
 * in fewer rows: what comes meanwhile is less, and only at the head does a cut end.
 */
const QUICK_PAGE_BYTES = 2 * PAGE_BYTES
/** From one asking to the next, for each `PAGE_BYTES` of rows. */
const QUICK_MS = 250
const CLASSES = [10, 8, 5, 3, 1]
/** Between rows that are read as one text: no JSON contains it. */
const ROW_END = "\u001e"

export interface PageRequest {
  readonly school: string
  readonly cursor: Cursor
  readonly staged: Staged | null
  /** The version that the school has; another one is worth a page without rows. */
  readonly manifest?: number | undefined
}

/** Hears of a page that takes a while before it is whole; of another one only its end tells. */
export interface PageListener {
  /** First of all; `line` hears of the header's own line, too. */
  readonly start: (header: Header) => void
  /** Sealed. */
  readonly line: (text: string) => void
}

export interface FeedPage {
  readonly header: Header
  /** Sealed, header and trailer included; none of those that a listener has heard. */
  readonly lines: ReadonlyArray<string>
  readonly complete: boolean
  /** Nothing after the cursor. */
  readonly empty: boolean
  /** By class, the seq up to which the lines reach. */
  readonly reached: Readonly<Record<string, number>>
}

/** What a school has not received: rows, and bytes of their text. */
interface Left {
  readonly rows: number
  readonly bytes: number
}

interface TableNames {
  readonly name: string
  /** JSON list, in the order of the rows' values. */
  readonly columns: string
}

/** Rows -> sealed lines; rows of one table and class share a line, and rows of one seq always do. */
const makeLines = (onLine: (text: string) => void) => {
  const lastOf = new Map<number, number>()
  let line: { readonly cls: number; readonly table: TableNames; readonly rows: Array<string>; bytes: number; last: number } | null = null
  const flush = (): void => {
    if (line === null) return
    lastOf.set(line.cls, line.last)
    onLine(
      sealLine(
        `["rows",${line.cls},${line.last},${JSON.stringify(line.table.name)},${line.table.columns},[${line.rows.join(",")}],${line.rows.length}]`,
      ),
    )
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
  /** Whole lines of rows that are joined already, one for each table, of all that lies between two seqs: only the last one reaches the end. */
  const addLines = (
    kind: RowsLine[0],
    cls: number,
    after: number,
    upTo: number,
    chunks: ReadonlyArray<readonly [table: TableNames, chunk: Chunk]>,
  ): void => {
    flush()
    chunks.forEach(([{ name, columns }, { rows, n }], i) => {
      const last = i < chunks.length - 1 ? after : upTo
      lastOf.set(cls, last)
      onLine(sealLine(`["${kind}",${cls},${last},${JSON.stringify(name)},${columns},[${rows}],${n}]`))
    })
  }
  /** `lastOf`: by class, the seq up to which the lines reach. */
  return { add, addLines, flush, lastOf: lastOf as ReadonlyMap<number, number> }
}

/** Where a page begins, of one snapshot. Names too: a table may be taking another shape at this moment. */
interface Start {
  readonly epoch: string
  readonly seq: number
  readonly manifest: number
  readonly headCut: string | null
  readonly cursorCut: string | null
  readonly stagedCut: string | null
  /** JSON: id, name and columns of every table. */
  readonly tables: string
  /** JSON: class and place of what waits, if the school is where it says. */
  readonly waiting: string
  /** Entries beyond those places; null: not asked for. */
  readonly left: number | null
}

/** Classes, highest first, in which something lies after their place; ?3: a JSON list of class and place. */
const WAITING = `SELECT c.value AS place FROM json_each(?3) c
  WHERE EXISTS (SELECT 1 FROM entry WHERE audience = ?1 AND class = c.value ->> 0 AND seq > c.value ->> 1)
     OR EXISTS (SELECT 1 FROM entry WHERE audience = ?2 AND class = c.value ->> 0 AND seq > c.value ->> 1)
  ORDER BY c.key`

const placesOf = (from: number, staged: Staged | null): string =>
  JSON.stringify(CLASSES.map((cls) => [cls, Math.max(from, staged?.after[String(cls)] ?? 0)]))

/** null: a tombstone, or too large for the line. */
const VALUES = `iif(octet_length(body) <= ${MAX_ROW_BYTES}, body, NULL)`
const ROW = `'[' || key || ',' || coalesce(${VALUES}, 'null') || ']' AS row, body IS NOT NULL AS isRow`
/** Which entries a statement reads: of one class, after a seq. */
interface From {
  readonly cls: string
  readonly seq: string
}
const GIVEN: From = { cls: "?3", seq: "?4" }
/** Of the first class in which something waits; ?3: as for `WAITING`. */
const FIRST: From = { cls: "(SELECT cls FROM w)", seq: "(SELECT max(?4, seq) FROM w)" }
const FIRST_WAITING = `w AS MATERIALIZED (SELECT place ->> 0 AS cls, place ->> 1 AS seq FROM (${WAITING}) LIMIT 1)`
const entriesOf = (what: string, audience: string, and = "", from = GIVEN): string =>
  `SELECT seq, tbl${what} FROM entry WHERE audience = ${audience} AND class = ${from.cls} AND seq > ${from.seq}${and}`
/** Two walks along entry_seq, merged as they go. The rows come as one text: a message of many values takes longer than to read them. */
const ROWS = `SELECT group_concat(row, '${ROW_END}') AS rows, json_group_array(seq) AS seqs, json_group_array(tbl) AS tbls
  FROM (${entriesOf(`, ${ROW}`, "?1")} UNION ALL ${entriesOf(`, ${ROW}`, "?2")} ORDER BY seq, isRow LIMIT ?5)`
/** The seq after so many entries: one more row begins with it, or it is the second entry of the last one. */
const endOf = (from: From): string =>
  `SELECT seq FROM (${entriesOf("", "?1", "", from)} UNION ALL ${entriesOf("", "?2", "", from)} ORDER BY seq) LIMIT 1 OFFSET ?5`
const beforeEnd = (row: string, from = GIVEN): string =>
  ["?1", "?2"]
    .map((audience) => entriesOf(`, ${row}`, audience, " AND seq < (SELECT coalesce(seq, 9223372036854775807) FROM b)", from))
    .join(" UNION ALL ")
const chunkOf = (rows: string, live: string, from: string, before = `WITH b AS MATERIALIZED (SELECT (${endOf(GIVEN)}) AS seq)`): string => `${before}
  SELECT ${rows} AS rows, count(*) AS n, count(*) = ${live} AND min(tbl) IS max(tbl) AS plain, max(seq) AS last, min(tbl) AS tbl, (SELECT seq FROM b) AS next FROM ${from}`
/**
 * The rows before it alone, joined as they stand in a line. Nothing to send where a tombstone is among them: that goes before the row of
 * its seq, and to sort them takes as long as to read them.
 */
const PLAIN = chunkOf("group_concat(row, ',')", "count(row)", `(${beforeEnd(`${VALUES} AS row`)} ORDER BY seq)`)
const PLAIN_FIRST = chunkOf(
  "group_concat(row, ',')",
  "count(row)",
  `(${beforeEnd(`${VALUES} AS row`, FIRST)} ORDER BY seq)`,
  `WITH ${FIRST_WAITING}, b AS MATERIALIZED (SELECT (${endOf(FIRST)}) AS seq)`,
)
/** Of each table, with keys and tombstones, also where rows of several tables lie among each other: one by one they would make lines of a row each. */
const CHUNKS = chunkOf("group_concat(row, ',' ORDER BY seq, isRow)", "sum(isRow)", `(${beforeEnd(ROW)}) GROUP BY tbl`)

/** `plain`: all of one table, and no tombstone. */
interface Chunk extends Piece {
  readonly tbl: number
}
const isPlain = (chunks: ReadonlyArray<Chunk>): boolean => chunks.length === 1 && chunks[0]?.plain === 1

interface Entries {
  /** Key and values of each. */
  readonly rows: ReadonlyArray<string>
  readonly seqs: ReadonlyArray<number>
  readonly tbls: ReadonlyArray<number>
}

const readEntries = (tx: Tx, own: number, cls: number, after: number, limit: number): Effect.Effect<Entries, LibsqlError> =>
  Effect.map(tx.all<{ rows: string | null; seqs: string; tbls: string }>(ROWS, [EVERY_SCHOOL, own, cls, after, limit]), ([found]) => {
    const seqs = JSON.parse(found?.seqs ?? "[]") as ReadonlyArray<number>
    const rows = seqs.length === 0 ? [] : (found?.rows ?? "").split(ROW_END)
    if (rows.length !== seqs.length) throw new Error(`${seqs.length} entries after ${after} read as ${rows.length} rows`)
    return { rows, seqs, tbls: JSON.parse(found?.tbls ?? "[]") as ReadonlyArray<number> }
  })

const leftOf = (what: string): string => {
  const of = (audience: string): string =>
    `(SELECT ${what} FROM entry WHERE audience = ${audience} AND class = c.value ->> 0 AND seq > c.value ->> 1)`
  return `SELECT sum(${of("?1")} + ${of("?2")}) AS n FROM json_each(?3) c`
}
const ROWS_LEFT = leftOf("count(*)")
const BYTES_LEFT = leftOf("coalesce(sum(octet_length(key) + coalesce(octet_length(body), 4) + 3), 0)")
/** ?6: what is left is to be counted, too. */
const START = `SELECT h.epoch, h.seq, h.manifest, (SELECT id FROM cut WHERE seq = h.seq) AS headCut,
    (SELECT id FROM cut WHERE seq = ?4) AS cursorCut, (SELECT id FROM cut WHERE seq = ?5) AS stagedCut,
    (SELECT json_group_array(json_array(id, name, columns)) FROM tables) AS tables,
    (SELECT json_group_array(json(place)) FROM (${WAITING})) AS waiting,
    iif(?6, (${ROWS_LEFT}), NULL) AS left
  FROM hub h`

/** The bytes of fewer rows are told from those that were read. */
const MEASURED_ROWS = 20_000

/** What lies after the places, a JSON list; `read`: some of it; `counted`: the rows, where they are known. */
const countLeft = (tx: Tx, own: number, places: string, read: Left, counted: number | null): Effect.Effect<Left, LibsqlError> =>
  Effect.gen(function* () {
    const count = (sql: string) => Effect.map(tx.all<{ n: number }>(sql, [EVERY_SCHOOL, own, places]), ([row]) => row?.n ?? 0)
    const rows = counted ?? (yield* count(ROWS_LEFT))
    return { rows, bytes: rows < MEASURED_ROWS ? Math.ceil((rows * read.bytes) / Math.max(1, read.rows)) : yield* count(BYTES_LEFT) }
  })

/** `audienceNo`: the number under which the rows of one school alone stand; null before its first row. */
export const makePages = (db: LibsqlFile, audienceNo: (school: string) => number | null) => {
  /** What a school that goes on exactly after its last page has left. */
  const remaining = new Map<string, { readonly at: string; readonly left: Left; readonly askedMs: number; readonly bytes: number }>()

  return (request: PageRequest, listener?: PageListener): Effect.Effect<FeedPage, LibsqlError> => {
    const own = audienceNo(request.school) ?? NOBODY - 1
    return db.read((tx) =>
      Effect.gen(function* () {
        const { cursor } = request
        const askedMs = yield* elapsedMs
        const said = placesOf(cursor.seq, request.staged)
        // After a line that broke the school is elsewhere than the last page would have taken it: counted anew.
        const last = remaining.get(request.school)
        const isCounted = last?.at !== JSON.stringify([cursor.seq, request.staged?.after ?? null])
        const isQuick = last !== undefined && !isCounted && (askedMs - last.askedMs) * PAGE_BYTES <= QUICK_MS * last.bytes
        const most = isQuick ? QUICK_PAGE_BYTES : PAGE_BYTES
        const opening = yield* Effect.forkChild(
          tx.all<Start>(START, [EVERY_SCHOOL, own, said, cursor.seq, request.staged?.head ?? null, isCounted]),
          { startImmediately: true },
        )
        // Behind it in the same message: the school is nearly always where it says.
        const first = tx.walk<Chunk>(PLAIN_FIRST, [EVERY_SCHOOL, own, said], { ...PIECES, mostBytes: most, after: 0, rows: 0, bytes: 0 })
        const [hub] = yield* Fiber.join(opening)
        if (hub === undefined) throw new Error("the feed's table hub has no row")
        const tables = JSON.parse(hub.tables) as ReadonlyArray<readonly [id: number, name: string, columns: string]>
        const tableById = new Map(tables.map(([id, name, columns]): [number, TableNames] => [id, { name, columns }]))
        const known = cursor.epoch === hub.epoch && cursor.seq > 0 && cursor.cut === hub.cursorCut
        const full = !known
        const from = known ? cursor.seq : 0
        const staged = request.staged !== null && request.staged.headCut === hub.stagedCut ? request.staged : null
        const headCut = hub.headCut ?? "0"

        const lines: Array<string> = []
        let header: Header | null = null
        let isStarted = false
        const push = (text: string): void => {
          if (isStarted) listener?.line(text)
          else lines.push(text)
        }
        const { add, addLines, flush, lastOf } = makeLines(push)
        /** From here on the page may go out: what is left of the cut, itself included, is known. */
        const begin = (left: Left): Header => {
          header = {
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
          lines.unshift(sealLine(JSON.stringify(["cut", header])))
          return header
        }
        const places = placesOf(from, staged)
        const asked = JSON.stringify([from, staged?.after ?? null])
        const countAll = Effect.suspend(() => {
          const now = remaining.get(request.school)
          return now?.at === asked ? Effect.succeed(now.left) : countLeft(tx, own, places, { rows: count, bytes }, places === said ? hub.left : null)
        })
        let all: Left | null = null
        let bytes = 0
        let count = 0
        let complete = true
        const found =
          places === said
            ? hub.waiting
            : `[${(yield* tx.all<{ place: string }>(WAITING, [EVERY_SCHOOL, own, places])).map(({ place }) => place).join(",")}]`
        const waiting = JSON.parse(found) as ReadonlyArray<readonly [cls: number, place: number]>
        const limit = (): number => rowsOfPiece(PIECES, count, bytes)
        /** The last rows were of several tables, or not all of them rows. */
        let isMixed = false
        const readMixed = (cls: number, after: number) => tx.all<Chunk>(CHUNKS, [EVERY_SCHOOL, own, cls, after, limit()])
        /** The next ones of several tables are read while these go out; others come by themselves. */
        let coming: Fiber.Fiber<ReadonlyArray<Chunk>, LibsqlError> | null = null
        let walking: Effect.Effect<Step<Chunk>, LibsqlError> | null = places === said ? first : null
        const readPlain = Effect.fnUntraced(function* (cls: number, after: number) {
          walking ??= tx.walk<Chunk>(PLAIN, [EVERY_SCHOOL, own, cls], { ...PIECES, mostBytes: most, after, rows: count, bytes })
          const chunk = yield* walking
          if (chunk.isEnd) walking = null
          return [chunk]
        })
        outer: for (const [cls, place] of waiting) {
          for (let after = place; ; ) {
            // A seq is never split: its tombstone and its row go together.
            if (bytes >= most) {
              complete = false
              break outer
            }
            let chunks: ReadonlyArray<Chunk> =
              coming !== null ? yield* Fiber.join(coming) : isMixed ? yield* readMixed(cls, after) : yield* readPlain(cls, after)
            coming = null
            const kind = !isMixed && isPlain(chunks) ? "puts" : "rows"
            if (!isMixed && kind === "rows") chunks = yield* readMixed(cls, after)
            isMixed = !isPlain(chunks)
            const next = chunks[0]?.next ?? null
            const size = chunks.reduce((sum, { rows }) => sum + (rows?.length ?? 0), 0)
            const entries = chunks.reduce((sum, { n }) => sum + n, 0)
            if (entries === 0) break
            if (entries === 1 || size <= WHOLE_LINE_BYTES) {
              const known = chunks.flatMap((chunk) => {
                const table = tableById.get(chunk.tbl)
                return table === undefined ? [] : [[table, chunk] as const]
              })
              bytes += known.reduce((sum, [, { rows }]) => sum + (rows?.length ?? 0), 0)
              count += known.reduce((sum, [, { n }]) => sum + n, 0)
              const before = after
              after = Math.max(...chunks.map(({ last }) => last ?? 0))
              if (isMixed && next !== null && bytes < most) coming = yield* Effect.forkChild(readMixed(cls, after), { startImmediately: true })
              if (next !== null && all === null) {
                all = yield* countAll
                const started = begin(all)
                listener?.start(started)
                isStarted = listener !== undefined
                if (listener !== undefined) for (const text of lines.splice(0)) listener.line(text)
              }
              addLines(kind, cls, before, after, known)
              if (next === null) break
              continue
            }
            const some = Math.max(LEAST_ENTRIES, limit())
            const { rows, seqs, tbls } = yield* readEntries(tx, own, cls, after, some)
            const isEnd = rows.length < some
            for (let i = 0; i < rows.length; i++) {
              const seq = seqs[i] as number
              // Its other entry may lie beyond what was read.
              if (!isEnd && seq === seqs.at(-1)) break
              if (bytes >= most && seq !== after) {
                complete = false
                break outer
              }
              after = seq
              const of = tableById.get(tbls[i] as number)
              if (of === undefined) continue
              const text = rows[i] as string
              add(cls, of, seq, text)
              bytes += text.length
              count++
            }
            if (isEnd) break
          }
        }
        flush()
        if (!complete) {
          const known = all ?? (yield* countAll)
          const next = Object.fromEntries([...lastOf].map(([cls, seq]) => [String(cls), seq]))
          const rest = { rows: Math.max(0, known.rows - count), bytes: Math.max(0, known.bytes - bytes) }
          remaining.set(request.school, { at: JSON.stringify([from, { ...staged?.after, ...next }]), left: rest, askedMs, bytes })
          if (header === null) begin({ rows: Math.max(known.rows, count), bytes: Math.max(known.bytes, bytes) })
        } else {
          remaining.delete(request.school)
          if (header === null) begin({ rows: count, bytes })
        }
        push(sealLine(JSON.stringify(["page", { rows: count, complete }])))
        const empty = count === 0 && staged === null && !full && (request.manifest ?? hub.manifest) === hub.manifest
        const reached = Object.fromEntries([...lastOf].map(([cls, seq]) => [String(cls), seq]))
        return { header: header as unknown as Header, lines, complete, empty, reached }
      }),
    )
  }
}
