/**
 * A file that somebody deletes, replaces or parts from its -wal while it is open. SQLite does not look: its connections go on in
 * files that nobody else can reach, and what is written there is gone with the process. So the connection looks itself. What it
 * still has open is the school's data: where the file is gone, or is no file of ours, it is put back; a file of ours in its place,
 * from a backup, is taken as it is, and what only the former one knows is kept beside it.
 */
import { closeSync, copyFileSync, existsSync, fstatSync, fsyncSync, openSync, readSync, renameSync, rmSync, statSync } from "node:fs"
import { dirname } from "node:path"
import Database from "libsql"
import { faultOf } from "./fault.ts"

/** Which files stand at a path, `"device/inode"`; null: none. */
export interface Place {
  readonly main: string | null
  readonly wal: string | null
}

const identity = (path: string): string | null => {
  const found = statSync(path, { bigint: true, throwIfNoEntry: false })
  return found === undefined ? null : `${found.dev}/${found.ino}`
}

export const placeOf = (path: string): Place => ({ main: identity(path), wal: identity(`${path}-wal`) })

type Moved = "deleted" | "replaced" | "parted"

/** While a connection is open, nobody may delete or replace either file: SQLite itself deletes the -wal with the last connection only. */
export const movedFrom = (then: Place, now: Place): Moved | null => {
  if (now.main === null) return "deleted"
  if (now.main !== then.main) return "replaced"
  return then.wal !== null && now.wal !== then.wal ? "parted" : null
}

/** How long what stands in the file's place must have stood still to be judged: a copy takes its time. */
export const STILL_MS = 1_000
/** The same for what is shorter than its own first page says: a slow line, or a disk that is called from afar, pauses for seconds. */
const UNFINISHED_TIMES = 10

/** What is seen of a place, `"device/inode size time"`; null: nothing stands there. */
interface Sight {
  readonly seen: string | null
  /** Since when it is seen like that, ms of a clock that never goes back. */
  readonly since: number
}

const seenAt = (path: string): string | null => {
  const found = statSync(path, { bigint: true, throwIfNoEntry: false })
  return found === undefined ? null : `${found.dev}/${found.ino} ${found.size} ${found.mtimeNs}`
}

const HEADER_BYTES = 100

/** Bytes that a database file has by its first page; null: that does not say it. */
export const bytesOf = (header: Uint8Array): number | null => {
  if (header.length < HEADER_BYTES || new TextDecoder().decode(header.subarray(0, 16)) !== "SQLite format 3\0") return null
  const view = new DataView(header.buffer, header.byteOffset, header.byteLength)
  // Written by an old SQLite, the number of pages stands for nothing.
  if (view.getUint32(24) !== view.getUint32(92)) return null
  const page = view.getUint16(16)
  return (page === 1 ? 65_536 : page) * view.getUint32(28)
}

/** Not of the file that is open: to close it would take the locks of its connections. */
const isShort = (path: string): boolean => {
  const handle = openSync(path, "r")
  try {
    const header = new Uint8Array(HEADER_BYTES)
    const bytes = bytesOf(header.subarray(0, readSync(handle, header)))
    return bytes !== null && fstatSync(handle).size < bytes
  } finally {
    closeSync(handle)
  }
}

const literal = (text: string): string => `'${text.replaceAll("'", "''")}'`

const OWN_TABLES = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN ('schoolbus_state', 'entry')"
const TABLES = "SELECT count(*) FROM sqlite_master WHERE type = 'table'"

const count = (db: Database.Database, sql: string): number => Number((db.prepare(sql).raw(true).get([]) as ReadonlyArray<unknown>)[0])

/** null: it is no database. One that is locked just now throws, to be asked again. Not opened to be read only: without a -wal that would not open it. */
const countAt = (path: string, sql: string): number | null => {
  let other: Database.Database | undefined
  try {
    other = new Database(path, { timeout: 0 })
    return count(other, sql)
  } catch (error) {
    if (/^SQLITE_(BUSY|LOCKED)/.test(faultOf(error).code)) throw error
    return null
  } finally {
    other?.close()
  }
}

const isOurs = (path: string): boolean => (countAt(path, OWN_TABLES) ?? 0) > 0
const isEmpty = (path: string): boolean => countAt(path, TABLES) === 0

const hasUnsent = (db: Database.Database): boolean =>
  count(db, "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'changes'") > 0 && count(db, "SELECT count(*) FROM changes") > 0

const toDisk = (path: string, flags: "r" | "r+"): void => {
  const handle = openSync(path, flags)
  try {
    fsyncSync(handle)
  } finally {
    closeSync(handle)
  }
}

const dropLog = (path: string): void => {
  for (const rest of ["-wal", "-shm"]) rmSync(`${path}${rest}`, { force: true })
}

/** Everything that the connection sees, on the disk under another name, and then under its own. */
const save = (db: Database.Database, to: string): void => {
  const part = `${to}.part`
  rmSync(part, { force: true })
  try {
    db.exec(`VACUUM INTO ${literal(part)}`)
    toDisk(part, "r+")
    dropLog(to)
    renameSync(part, to)
    // The name, too: what is written from now on stands under it.
    toDisk(dirname(to), "r")
  } finally {
    rmSync(part, { force: true })
  }
}

/** A name beside the file that is free. */
const aside = (path: string): string => {
  for (let n = 1; ; n++) if (!existsSync(`${path}.aside-${n}`)) return `${path}.aside-${n}`
}

/** Looks at a file again and again, and keeps what a connection has open once something else stands still in its place. */
export class Watch {
  #sight: Sight = { seen: "", since: 0 }

  constructor(
    readonly path: string,
    readonly stillMs: number,
  ) {}

  /**
   * What has happened to the file, and what became of its rows; null: it stands where it was opened, or what stands there is being
   * written. Not inside a transaction. Afterwards every connection is one to the former file: SQLite leaves the new one alone when
   * they close.
   */
  look(db: Database.Database, then: Place): string | null {
    const moved = this.#moved(then)
    return moved === null || (moved !== "parted" && !this.#isStill()) ? null : keepPlace(this.path, db, moved)
  }

  /** The last look, before the connection closes: nobody comes back to judge what is being written. */
  last(db: Database.Database, then: Place): void {
    const moved = this.#moved(then)
    if (moved !== null) keepPlace(this.path, db, moved)
  }

  #moved(then: Place): Moved | null {
    const now = placeOf(this.path)
    const moved = movedFrom(then, now)
    // Over another file, our -wal would be taken for its own. What stands in it we have open.
    if ((moved === "deleted" || moved === "replaced") && now.wal === then.wal) dropLog(this.path)
    return moved
  }

  #isStill(): boolean {
    const seen = seenAt(this.path)
    const now = performance.now()
    if (seen !== this.#sight.seen) this.#sight = { seen, since: now }
    const stillFor = now - this.#sight.since
    return stillFor >= this.stillMs * (seen !== null && stillFor < UNFINISHED_TIMES * this.stillMs && isShort(this.path) ? UNFINISHED_TIMES : 1)
  }
}

const keepPlace = (path: string, db: Database.Database, moved: Moved): string => {
  const programs = "Programs that have it open must open it again"
  if (moved === "replaced" && isOurs(path)) {
    const taken = `another file was put in the place of ${path} while it was in use; that one is taken`
    if (!hasUnsent(db)) return `${taken}. ${programs}`
    const kept = aside(path)
    save(db, kept)
    return `${taken}. Changes that had not been sent stand in ${kept}. ${programs}`
  }
  if (moved === "replaced" && !isEmpty(path)) copyFileSync(path, aside(path))
  save(db, path)
  const what =
    moved === "parted"
      ? `${path}-wal was deleted or replaced`
      : moved === "replaced"
        ? `${path} was replaced by a foreign file`
        : `${path} was deleted`
  return `${what} while it was in use; it is put back as it was. ${programs}`
}
