/**
 * Every message between hub and school, in one place. The school always dials; its key (`Authorization: Bearer …`) says
 * who it is and nothing in a request can.
 *
 * `POST /api/sync/hello` Hello -> Welcome · `GET /api/sync/manifest` -> Manifest ·
 * `GET /api/sync/pull?incarnation&token&epoch&seq&cut&staged&wait` -> lines (204: nothing new) · `GET /api/sync/stream?…` the same
 * without end, an empty line at once and, while nothing is left, now and then · `POST /api/sync/push?incarnation&token&batch&hash&size&part&parts` bytes ->
 * Verdicts, or PartsMissing (202) · `POST /api/sync/heartbeat` Heartbeat -> Pulse · `POST /api/sync/compare?incarnation&token`
 * CompareAsk -> CompareDigests, ComparePrints or CompareAgain. Every refusal is problem+json with a `code`.
 *
 * A batch of `size` bytes goes in `parts` slices, the n-th (from 1) from `(n-1)*size/parts` to `n*size/parts`, rounded down, each
 * compressed by itself. Part 0 has no body: it asks what is missing, and hands the batch over when nothing is.
 *
 * Lines of a pull: one JSON array each, its last element the CRC-32 (8 hex digits) of the line's text before the comma.
 *
 *     ["cut", {Header}, crc]
 *     ["rows", class, lastSeq, "public.students", ["id","name"], [[key,row|null],…], n, crc]  n rows; null = tombstone; row lists the named columns
 *     ["puts", class, lastSeq, "public.students", ["id","name"], [row,…], n, crc]             the same without tombstones; a row's key is in it
 *     ["page", {Trailer}, crc]
 *     ["sync", {}, crc]                                              in a stream only: somebody asked this school to sync now
 *
 * A page may break off after any line. What a school has received it names as `staged`: the header's `head` and `headCut`
 * of the first page, and for each class the last seq it holds durably. Where rows of several tables lie among each other, each
 * table has a line of its own; those before the last one carry the seq that the class had reached before them.
 */
import { z } from "zod"
import type { Wire } from "../model/value.ts"

export const PROTOCOL = 1

/** Limits that both sides know by name. */
export const MAX_LINE_BYTES = 128 * 1024 * 1024
/** A larger row goes to no school, so that it does not keep everything else from one. */
export const MAX_ROW_BYTES = 120 * 1024 * 1024
/** A page ends after about this many bytes of rows, uncompressed; a row is never cut. */
export const PAGE_BYTES = 1024 * 1024
/** Rows of one line; a line ends at the first of both. */
export const LINE_ROWS = 500
export const LINE_BYTES = 64 * 1024
export const MAX_WAIT_SECONDS = 25
/** A connection that is silent for longer is dead. */
export const IDLE_MS = 45_000
/** In a stream something comes at least this often. */
export const BEAT_MS = 20_000
/** Bytes a second, over the time of a whole page: a peer that is slower for long gets a new connection. */
export const LEAST_RATE = 250
/** A body that takes longer in all is not waited for. */
export const MAX_BODY_MS = 10 * 60_000
/** On every 204 of a pull; "1": somebody asked this school to sync now. What answers without it is no hub. */
export const SYNC_HEADER = "schoolbus-sync"
/** On a request for pages: codings that the school undoes itself. The answer then says nothing of its coding, which its first bytes tell. */
export const CODING_HEADER = "schoolbus-coding"
/** One body of a push, compressed. A batch larger than this goes in numbered parts. */
export const MAX_PART_BYTES = 4 * 1024 * 1024
/** A batch, uncompressed: room for one change of `MAX_CHANGE_BYTES`. */
const MAX_BATCH_BYTES = 64 * 1024 * 1024
/** What a ratio of compression may reach before a body counts as a bomb. */
export const MAX_INFLATE_RATIO = 200

const Text = (max: number) => z.string().max(max)
const Whole = z.coerce.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER)

export const Hello = z.object({
  protocol: z.number().int(),
  incarnation: z.uuid(),
  token: z.string().max(200),
  epoch: z.string().max(64),
  seq: z.number().int().nonnegative(),
  cut: z.string().max(16),
  /** Newest batch that this file has frozen. */
  lastBatch: z.number().int().nonnegative(),
  manifest: z.number().int().nonnegative(),
  /** The school's clock, ms since 1970. */
  clock: z.number(),
  version: z.string().max(40),
})
export type Hello = z.infer<typeof Hello>

export const Welcome = z.object({
  school: z.object({ id: z.string(), name: z.string() }),
  /** Identity of the Postgres cluster; another one at a later hello is `wrong_cluster`. */
  cluster: z.string(),
  epoch: z.string(),
  /** Highest batch number of this incarnation in the ledger. */
  lastBatch: z.number().int(),
  manifest: z.number().int(),
  clock: z.number(),
  /** To be stored before it is first used. */
  token: z.string(),
  paused: z.boolean(),
})
export type Welcome = z.infer<typeof Welcome>

export const Heartbeat = z.object({
  incarnation: z.uuid(),
  pending: z.number().int(),
  oldestPendingAt: z.number().nullable(),
  conflicts: z.number().int(),
  behind: z.number().int(),
  quarantined: z.number().int(),
  devices: z.number().int(),
  state: z.string().max(40),
  reason: z.string().max(500).nullable(),
  clock: z.number(),
  /** The cut that is applied: a stream itself does not tell. */
  cursor: z.object({ epoch: Text(64), seq: Whole, cut: Text(16) }).exactOptional(),
  /** Of a cut that is under way: rows and bytes of text that are here, and in all. */
  progress: z.object({ rows: Whole, total: Whole, bytes: Whole, totalBytes: Whole }).exactOptional(),
  /** A metered link: the next call comes about so much later. */
  quietMs: Whole.exactOptional(),
})
export type Heartbeat = z.infer<typeof Heartbeat>

/** A table whose changes head office does not take now, why, and since when, ms since 1970. */
export const PausedTable = z.object({ table: z.string(), reason: z.string(), since: z.number() })
export type PausedTable = z.infer<typeof PausedTable>

/** `sync` true: the hub asks for a sync now. `pausedTables`: absent = none. */
export const Pulse = z.object({ clock: z.number(), sync: z.boolean(), paused: z.boolean(), pausedTables: z.array(PausedTable).exactOptional() })
export type Pulse = z.infer<typeof Pulse>

/** Position inside a catch-up: what of each class, up to which seq, is durably here. */
export const Staged = z.object({
  head: z.number().int(),
  headCut: z.string(),
  after: z.record(z.string(), z.number().int()),
})
export type Staged = z.infer<typeof Staged>

export const PullQuery = z.object({
  incarnation: z.uuid(),
  token: Text(200),
  epoch: Text(64),
  seq: Whole,
  cut: Text(16),
  /** JSON of Staged; "" = nothing. */
  staged: Text(2000).default(""),
  /** The version that the school has: a newer one is told without a row. */
  manifest: Whole.optional(),
  wait: z.coerce.number().min(0).max(MAX_WAIT_SECONDS).default(0),
})

export const MAX_PARTS = 4096

export const PushQuery = z
  .object({
    incarnation: z.uuid(),
    token: Text(200),
    batch: Whole.min(1),
    hash: z.string().regex(/^[0-9a-f]{64}$/),
    size: Whole.min(1).max(MAX_BATCH_BYTES),
    part: Whole,
    parts: Whole.min(1).max(MAX_PARTS),
  })
  .refine(({ part, parts }) => part <= parts, { message: "part is beyond parts", path: ["part"] })
export type PushQuery = z.infer<typeof PushQuery>

export const PartsMissing = z.object({ missing: z.array(z.number().int()) })

/** Where the n-th of `parts` slices begins and ends. */
export const sliceOf = (size: number, part: number, parts: number): readonly [start: number, end: number] => [
  Math.floor(((part - 1) * size) / parts),
  Math.floor((part * size) / parts),
]

export const Header = z.object({
  /** The rows are for this school; it checks. */
  school: z.string(),
  epoch: z.string(),
  /** Rows after this seq; 0 with `full`: everything, and what is not listed does not exist. */
  from: z.number().int(),
  full: z.boolean(),
  /** The page goes on after what the request named as `staged`; false: what is staged belongs to a state the hub does not know. */
  resumed: z.boolean(),
  manifest: z.number().int(),
  /** Head of the snapshot that this page was read from, and its name. */
  head: z.number().int(),
  headCut: z.string(),
  /** Entries left for this school in this snapshot, this page included: for progress. */
  left: z.number().int(),
  /** The same in bytes of text, before compression. */
  leftBytes: z.number().int().exactOptional(),
})
export type Header = z.infer<typeof Header>

export const Trailer = z.object({
  rows: z.number().int(),
  /** True: one snapshot had nothing left. The school is then at (epoch, head, headCut) of this page's header. */
  complete: z.boolean(),
})
export type Trailer = z.infer<typeof Trailer>

/** `key` as wire key values; `row` in the order of the line's columns, null = the row no longer exists here. */
export type LineRow = readonly [key: ReadonlyArray<Wire>, row: ReadonlyArray<Wire> | null]
/**
 * A line of rows as it is handed on: on the wire `["rows",8,812,"public.pupils",["id","name"],[[["a1"],["a1","Amina"]]],1]` or
 * `["puts",8,812,"public.pupils",["id","name"],[["a1","Amina"]],1]`, where the last number says how many rows it holds. Its text is
 * read once, where the rows are written.
 */
export type RowsLine = readonly [kind: "rows" | "puts", cls: number, lastSeq: number, table: string, rows: number, text: string]
type TextOf<Kind, Row> = readonly [
  kind: Kind,
  cls: number,
  lastSeq: number,
  table: string,
  columns: ReadonlyArray<string>,
  rows: ReadonlyArray<Row>,
  count?: number,
]
/** The text of such a line, read. */
export type RowsText = TextOf<"rows", LineRow> | TextOf<"puts", ReadonlyArray<Wire>>
export type Line = readonly ["cut", Header] | RowsLine | readonly ["page", Trailer] | readonly ["sync", Readonly<Record<string, never>>]

/** problem+json bodies carry one of these in `code`. */
export type ProblemCode =
  | "unauthorized" // 401: unknown, malformed or revoked key
  | "paused" // 403
  | "cloned" // 409: two copies of one school file
  | "restored" // 409: an older copy of a school file
  | "wrong_school" // 409: this file belongs to another school than the key
  | "hello" // 409: say hello again
  | "compare" // 409: the school's cut is unknown here; compare, and go on from the cut that was compared with
  | "manifest" // 409: fetch the manifest first
  | "far_apart" // 409: too much is on its way to compare now
  | "batch_gap" // 409 {expected}
  | "batch_differs" // 409: same number, other bytes
  | "not_a_batch" // 422
  | "invalid" // 400, 422
  | "protocol" // 426: this hub speaks another version
  | "loading" // 503: the first copy of Postgres is not there yet
  | "unavailable" // 503: Postgres or the disk is away; try again

/** Rows that the other side must leave out or look for, and prints of rows: lists of words as base64, by table. */
const WordsByTable = z.record(z.string().max(200), z.base64())
/** Keys that one comparison may leave out on each side; of more, the two are too far apart to be compared. */
export const MAX_SKIPPED = 10_000
/** Rows whose prints or keys one message may carry. */
export const MAX_COMPARED = 50_000
/** Keys of which one request may ask the rows, and about how many bytes of rows are answered. */
export const MAX_ROWS_ASKED = 500
export const ROWS_BYTES = 4 * 1024 * 1024
/** A compare request. */
export const MAX_COMPARE_BYTES = 8 * 1024 * 1024

/** The cut at which both sides are compared. */
const Point = z.object({ epoch: z.string().max(64), seq: z.number().int().nonnegative(), cut: z.string().max(16) })
export type Point = z.infer<typeof Point>

/**
 * `POST /api/sync/compare?incarnation&token`, four questions (model/digest.ts):
 * - `digests`: of all rows that the school may see, as of its cut, or, when the hub does not know that cut, as of the head, once the
 *   school's newest batch (`batch`, 0 = none) has gone through the feed;
 * - `prints`: of the rows in some buckets;
 * - `rows`: wire keys of the named rows, and of rows named by key what stood there at the cut, as far as the feed still knows;
 *   an answer that would be too long leaves some out, to be asked for again;
 * - `again`: the named rows shall come once more with the next pull, or a tombstone where the school may not see them.
 */
export const CompareAsk = z.discriminatedUnion("ask", [
  z.object({ ask: z.literal("digests"), at: Point, manifest: z.number().int(), skip: WordsByTable, batch: z.number().int().nonnegative() }),
  z.object({
    ask: z.literal("prints"),
    at: Point,
    skip: WordsByTable,
    buckets: z.record(
      z.string().max(200),
      z.object({ bits: z.number().int().min(0).max(16), list: z.array(z.number().int().nonnegative()).max(65536) }),
    ),
  }),
  z.object({
    ask: z.literal("rows"),
    at: Point,
    names: WordsByTable,
    keys: z.record(z.string().max(200), z.array(z.string().max(64 * 1024)).max(MAX_ROWS_ASKED)),
  }),
  z.object({
    ask: z.literal("again"),
    at: Point,
    names: WordsByTable,
    keys: z.record(z.string().max(200), z.array(z.string().max(64 * 1024)).max(MAX_COMPARED)),
  }),
])
export type CompareAsk = z.infer<typeof CompareAsk>

export const CompareDigests = z.object({
  at: Point,
  /** False: the hub does not know the school's cut; what differs is everything that happened since in one life or the other. */
  known: z.boolean(),
  /** Tables that the hub is reading again from Postgres: their rows here may be of a former shape, or not the present ones. */
  settling: z.array(z.string()).default([]),
  tables: z.record(z.string(), z.object({ rows: z.number().int(), bits: z.number().int(), digests: z.base64(), newer: z.base64() })),
})
export type CompareDigests = z.infer<typeof CompareDigests>
export const ComparePrints = z.object({ prints: WordsByTable })
export type ComparePrints = z.infer<typeof ComparePrints>
const KeysByTable = z.record(z.string(), z.array(z.string()))
/**
 * `rows`: by table the asked keys' rows as they stood at the cut, as JSON arrays in the order of the manifest's columns, null where there was
 * none; keys left out come later. `unknown`: keys whose row at the cut is not known any more; theirs is the present one.
 */
export const CompareRows = z.object({
  keys: KeysByTable,
  rows: z.record(z.string(), z.record(z.string(), z.string().nullable())),
  unknown: KeysByTable,
})
export type CompareRows = z.infer<typeof CompareRows>
export const CompareAgain = z.object({ rows: z.number().int(), gone: z.number().int() })
export type CompareAgain = z.infer<typeof CompareAgain>

/** Batch bytes: NDJSON as `model/batch.ts` writes them. */
export const BatchHeaderLine = z.object({
  incarnation: z.uuid(),
  origin: z.uuid().exactOptional(),
  number: z.number().int().positive(),
  manifest: z.number().int().nonnegative(),
  contacts: z.array(z.tuple([z.number().int(), z.number(), z.number()])).max(1000),
  changes: z.number().int().nonnegative(),
})

const WireValue = z.union([z.null(), z.boolean(), z.number(), z.string()])
const RefusedValue = z.object({ refused: z.string(), hex: z.string() })
const Values = z.record(z.string(), z.union([WireValue, RefusedValue]))
export const ChangeLine = z.object({
  id: z.number().int(),
  table: z.string(),
  op: z.enum(["insert", "update", "delete"]),
  key: z.array(WireValue),
  newKey: z.array(WireValue).exactOptional(),
  at: z.number(),
  base: Values,
  mine: Values,
})

export const Exception = z.object({
  id: z.number().int(),
  verdict: z.enum(["merged", "superseded", "conflict", "quarantined"]),
  reason: z.string().exactOptional(),
  record: z.string().exactOptional(),
  hold: z.boolean().exactOptional(),
  columns: z.array(z.string()).exactOptional(),
})
export const Verdicts = z.object({ batch: z.number().int(), hash: z.string(), changes: z.number().int(), exceptions: z.array(Exception) })
