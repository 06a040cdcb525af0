/**
 * Random SQL on random tables: the same statements run on a plain twin of the file, without triggers of ours. What is
 * captured, replayed in order on the state before, gives the state after, and the twin holds the same. `CAPTURE_SEED=n`
 * replays one seed, `CAPTURE_SEEDS=n` runs more of them.
 */
import { execFileSync } from "node:child_process"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import Database from "libsql"
import { expect, it } from "vitest"
import type { Change } from "../../src/model/change.ts"
import type { Table } from "../../src/model/table.ts"
import { cellToWire } from "../../src/model/value.ts"
import { readCell, safely } from "../../src/libsql/cells.ts"
import { column, manifestOf, openSchoolFile, table } from "../support/school-file.ts"

type Random = (below: number) => number

/** mulberry32 */
const randomOf = (seed: number): Random => {
  let state = seed >>> 0
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) % below
  }
}

interface Shape {
  readonly ddl: string
  readonly tables: ReadonlyArray<Table>
}

/** Three tables: `p` is the parent of `c` and of itself, `w` stands alone. Keys, indexes and actions differ by seed. */
const shapeOf = (random: Random): Shape => {
  const pick = <A>(list: ReadonlyArray<A>): A => list[random(list.length)] as A
  const keyType = pick(["TEXT", "TEXT COLLATE NOCASE", "BIGINT", "BLOB", "INTEGER"])
  const kind = keyType.startsWith("TEXT") ? "text" : keyType === "BLOB" ? "bytea" : "bigint"
  const without = keyType === "INTEGER" ? "" : pick(["", " WITHOUT ROWID"])
  const action = () =>
    pick(["", " ON DELETE CASCADE", " ON DELETE SET NULL", " ON DELETE SET DEFAULT", " ON DELETE CASCADE ON UPDATE CASCADE", " ON UPDATE CASCADE"])
  const conflict = () => pick(["", "", " ON CONFLICT REPLACE", " ON CONFLICT IGNORE"])
  const ddl = [
    `CREATE TABLE p (id ${keyType} NOT NULL PRIMARY KEY${conflict()}, code TEXT ${pick(["", "COLLATE NOCASE", "NOT NULL DEFAULT 'd'"])} UNIQUE${conflict()}, n INT, up ${keyType} DEFAULT NULL REFERENCES p (id)${action()}, r REAL)${without};`,
    `CREATE TABLE c (a BIGINT NOT NULL, b ${keyType} NOT NULL, p ${keyType} DEFAULT NULL REFERENCES p (id)${action()}, x, note TEXT, PRIMARY KEY (a, b))${pick(["", " WITHOUT ROWID"])};`,
    `CREATE TABLE w (id TEXT PRIMARY KEY, a, b, big BIGINT, photo BLOB);`,
    ...(random(2) === 0 ? ["CREATE UNIQUE INDEX w_a ON w (a COLLATE NOCASE);"] : []),
    ...(random(2) === 0 ? ["CREATE UNIQUE INDEX w_ab ON w (a, b);"] : []),
    ...(random(2) === 0 ? ["CREATE UNIQUE INDEX w_part ON w (b) WHERE big > 0;"] : []),
    ...(random(2) === 0 ? ['CREATE UNIQUE INDEX w_expr ON w (lower(a), coalesce("big", 0) % 3);'] : []),
    ...(random(3) === 0 ? ["CREATE UNIQUE INDEX c_note ON c (note, x DESC);"] : []),
  ].join("\n")
  const key = column("id", kind, { notNull: true })
  return {
    ddl,
    tables: [
      table("p", [key, column("code", "text", { notNull: true }), column("n", "int"), column("up", kind), column("r", "float")]),
      table("c", [column("a", "bigint"), column("b", kind), column("p", kind), column("x", "bytea"), column("note")], { key: ["a", "b"] }),
      table("w", [column("id"), column("a"), column("b"), column("big", "bigint"), column("photo", "bytea")]),
    ],
  }
}

const scriptOf = (random: Random, shape: Shape): ReadonlyArray<string> => {
  const pick = <A>(list: ReadonlyArray<A>): A => list[random(list.length)] as A
  const kind = shape.tables[0]?.columns[0]?.kind
  const key = () =>
    kind === "text"
      ? pick(["'a'", "'A'", "'b'", "'é'", "'d''e'", "''"])
      : kind === "bytea"
        ? pick(["x''", "x'00'", "x'61'"])
        : pick(["1", "2", "3", "-9007199254740993"])
  const text = () => pick(["NULL", "'x'", "'X'", "'y'", "'ö'", "CAST(x'ff61' AS TEXT)", "CAST(x'610062' AS TEXT)", "''", "'7'", "7", "x'78'"])
  const any = () => pick(["NULL", "0", "1", "2", "1.5", "-0.0", "'x'", "'X'", "x'00ff'", "0.1", "1e300", "9007199254740993"])
  const int = () => pick(["NULL", "0", "1", "2", "'t'", "5.0"])
  const values: Record<string, () => string> = {
    p: () => `(${key()}, ${text()}, ${int()}, ${pick(["NULL", key()])}, ${any()})`,
    c: () => `(${int()}, ${key()}, ${pick(["NULL", key()])}, ${any()}, ${text()})`,
    w: () => `(${pick(["'1'", "'2'", "'3'", "'4'"])}, ${text()}, ${any()}, ${pick(["NULL", "1", "4", "9223372036854775807"])}, ${any()})`,
  }
  const sets: Record<string, () => string> = {
    p: () =>
      pick([
        `code = ${text()}`,
        `n = ${int()}`,
        `id = ${key()}`,
        `up = ${key()}`,
        `r = ${any()}`,
        "n = coalesce(n, 0) + 1, r = r",
        `id = ${key()}, code = ${text()}`,
        "code = upper(code)",
      ]),
    c: () => pick([`a = ${int()}`, `b = ${key()}`, `p = ${key()}`, `x = ${any()}`, `note = ${text()}`, "a = 3 - a", "x = x"]),
    w: () =>
      pick([
        `a = ${text()}`,
        `b = ${any()}`,
        "big = big - 3",
        `photo = ${any()}`,
        `id = ${pick(["'1'", "'2'", "'3'"])}`,
        "a = b, b = a",
        "a = lower(a)",
      ]),
  }
  const where = (t: string) =>
    pick([
      "",
      "",
      ` WHERE ${t === "c" ? "b" : "id"} = ${t === "w" ? pick(["'1'", "'2'", "'3'"]) : key()}`,
      t === "p" ? " WHERE n > 0" : " WHERE a IS NOT NULL",
      " WHERE random() IS NULL",
    ])
  const or = () => pick(["", "", "", " OR REPLACE", " OR REPLACE", " OR IGNORE", " OR FAIL", " OR ABORT", " OR ROLLBACK"])
  const returning = () => pick(["", "", "", " RETURNING 1"])
  const statement = (): string => {
    const t = pick(["p", "p", "c", "w", "w"])
    const target = t === "c" ? "(a, b)" : "(id)"
    switch (random(12)) {
      case 0:
      case 1:
      case 2:
        return `INSERT${or()} INTO ${t} VALUES ${Array.from({ length: 1 + random(3) }, () => values[t]?.()).join(", ")}${returning()}`
      case 3:
        return `REPLACE INTO ${t} VALUES ${Array.from({ length: 1 + random(3) }, () => values[t]?.()).join(", ")}`
      case 4:
        return `INSERT INTO ${t} VALUES ${values[t]?.()} ON CONFLICT ${pick([`${target} DO NOTHING`, "DO NOTHING", `${target} DO UPDATE SET ${sets[t]?.()}`])}${returning()}`
      case 5:
        return `INSERT${or()} INTO ${t} SELECT * FROM ${t}${where(t)}`
      case 6:
      case 7:
      case 8:
        return `UPDATE${or()} ${t} SET ${sets[t]?.()}${where(t)}${returning()}`
      case 9:
        return `UPDATE${or()} p SET n = o.n FROM (SELECT id, coalesce(n, 1) * 2 AS n FROM p) o WHERE p.id = o.id`
      case 10:
        return `DELETE FROM ${t}${where(t)}${returning()}`
      default:
        return pick([
          "SAVEPOINT s; $; ROLLBACK TO s; RELEASE s",
          "SAVEPOINT s; $; RELEASE s",
          "BEGIN; $; $; COMMIT",
          "BEGIN; $; $; ROLLBACK",
        ]).replaceAll("$", () => `UPDATE${or()} ${t} SET ${sets[t]?.()}; DELETE FROM c WHERE a = ${int()}`)
    }
  }
  return Array.from({ length: 12 + random(30) }, () => {
    const one = random(9)
    if (one === 0) return `PRAGMA recursive_triggers = ${random(2)}`
    if (one === 1) return `PRAGMA foreign_keys = ${random(2)}`
    return statement()
  })
}

/**
 * SQLite refuses an UPDATE OR REPLACE whose cascade deletes a row that it would still update, when recursive_triggers are on
 * and the table has any delete trigger: the statement then fails whole. And where foreign keys were off for a while, having
 * triggers or not decides which statement SQLite blames for the orphans. Twin and file then part; what is captured stays exact.
 */
const PINNED = 2835

type Row = Record<string, unknown>
const rowKey = (key: ReadonlyArray<unknown>) => JSON.stringify(key)

const stateOf = (db: Database.Database, shape: Shape): Map<string, Map<string, Row>> =>
  new Map(
    shape.tables.map((t) => {
      const rows = db
        .prepare(`SELECT ${t.columns.map(({ name }) => safely(`t."${name}"`)).join(", ")} FROM "${t.local}" t`)
        .safeIntegers(true)
        .raw(true)
        .all()
      return [
        t.name,
        new Map(
          (rows as Array<Array<never>>).map((cells) => {
            const row: Row = Object.fromEntries(
              t.columns.map((c, i) => {
                const cell = readCell(cells[i] ?? null)
                const wire =
                  typeof cell === "object" && cell !== null && "invalid" in cell
                    ? { refused: "text is not valid UTF-8", hex: Buffer.from(cell.invalid).toString("hex") }
                    : cellToWire(c.kind, cell)
                return [c.name, wire]
              }),
            )
            return [rowKey(t.key.map((name) => row[name])), row]
          }),
        ),
      ]
    }),
  )

/** A key value that cannot travel stands as text in `key`; base and mine hold it as it is. */
const replay = (state: Map<string, Map<string, Row>>, changes: ReadonlyArray<Change>, shape: Shape): void => {
  for (const change of changes) {
    const rows = state.get(change.table) as Map<string, Row>
    const keyNames = shape.tables.find((t) => t.name === change.table)?.key ?? []
    const keyIn = (row: Readonly<Row>) => rowKey(keyNames.map((name) => row[name]))
    if (change.op === "insert") {
      expect(rows.get(keyIn(change.mine)), `insert of ${change.table} ${change.key}`).toBeUndefined()
      rows.set(keyIn(change.mine), { ...change.mine })
      continue
    }
    const held = rows.get(keyIn(change.base))
    expect(change.base, `${change.op} of ${change.table} ${change.key}`).toEqual(held)
    rows.delete(keyIn(change.base))
    if (change.op === "delete") continue
    const next = { ...held, ...change.mine }
    expect(rows.get(keyIn(next)), `update of ${change.table} ${change.key}`).toBeUndefined()
    rows.set(keyIn(next), next)
  }
}

const runSeed = async (seed: number): Promise<void> => {
  const random = randomOf(seed)
  const shape = shapeOf(random)
  const script = scriptOf(random, shape)
  const folder = mkdtempSync(join(tmpdir(), "schoolbus-twin-"))
  const twinPath = join(folder, "twin.db")
  execFileSync("sqlite3", [twinPath], { input: shape.ddl })
  const file = await openSchoolFile(shape.tables, { before: shape.ddl, install: false })
  const twin = new Database(twinPath)
  const own = new Database(file.path, { timeout: 5000 })
  try {
    await file.install(manifestOf(shape.tables))
    for (const db of [twin, own]) db.exec("PRAGMA foreign_keys = OFF")
    const state = stateOf(own, shape)
    const done: Array<string> = []
    let parted = false
    for (const sql of script) {
      done.push(sql)
      const outcomes = [twin, own].map((db) => {
        try {
          db.exec(sql)
          return "done"
        } catch (error) {
          if (db.inTransaction) db.exec("ROLLBACK")
          return (error as { rawCode?: number }).rawCode === PINNED ? "pinned" : String(error)
        }
      })
      parted = outcomes[0] !== outcomes[1] && (outcomes[1] === "pinned" || outcomes.some((outcome) => outcome.includes("FOREIGN KEY")))
      if (parted) break
      expect(outcomes[1], `outcome after:\n${done.join(";\n")}`).toEqual(outcomes[0])
      if (random(5) === 0) replay(state, await file.freeze({ maxChanges: 1 + random(6), pageRows: 1 + random(8) }), shape)
    }
    replay(state, await file.freeze(), shape)
    const after = stateOf(own, shape)
    if (!parted) expect(after).toEqual(stateOf(twin, shape))
    expect(state).toEqual(after)
    expect(file.read("SELECT count(*) FROM changes WHERE batch IS NULL")).toEqual([[0n]])
  } catch (error) {
    throw new Error(`CAPTURE_SEED=${seed}\n${shape.ddl}\n${script.join(";\n")};\n\n${String(error)}`)
  } finally {
    twin.close()
    own.close()
    await file.close()
    rmSync(folder, { recursive: true, force: true })
  }
}

it("random SQL on random tables is captured exactly", async () => {
  const only = process.env["CAPTURE_SEED"]
  const seeds = only === undefined ? Array.from({ length: Number(process.env["CAPTURE_SEEDS"] ?? 40) }, (_, i) => i + 1) : [Number(only)]
  console.info(`seeds ${seeds[0]} to ${seeds.at(-1)}`)
  for (const seed of seeds) await runSeed(seed)
}, 600_000)
