/** A school of the simulation: its file, its program, and each step of the flows by itself, so that a fault may come between any two. */
import { join } from "node:path"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import Database from "libsql"
import { Deliver, type RowsLine } from "../../src/down/deliver.ts"
import { hearMissed } from "../../src/down/missed.ts"
import { Libsql, openFile } from "../../src/libsql/client.ts"
import { freeze } from "../../src/libsql/freeze.ts"
import { migrateFile } from "../../src/libsql/migrate.ts"
import { installTables } from "../../src/libsql/schema.ts"
import { isRows, openLine } from "../../src/link/frame.ts"
import type { Header, Trailer } from "../../src/link/protocol.ts"
import type { Manifest } from "../../src/model/table.ts"
import type { World } from "../support/world.ts"
import { byKey, keyOf, type Row } from "./office.ts"
import { type SimTable, valueColumns } from "./schema.ts"
import { bytesOf } from "../../src/libsql/store-batch.ts"

export interface Batch {
  readonly number: number
  readonly hash: string
  readonly text: string
  /** Ids of its changes. */
  readonly ids: ReadonlyArray<number>
}

export interface Node {
  readonly id: string
  readonly incarnation: string
  /** SQL of a program of the school, on a connection of its own; the ids of the writes that were captured. */
  readonly program: (sql: string, args: ReadonlyArray<string | number | bigint | null>) => ReadonlyArray<number>
  readonly rows: (table: SimTable) => ReadonlyMap<string, Row>
  readonly freeze: () => Promise<void>
  /** Frozen batches whose ledger row has not come down. */
  readonly unsettled: () => Promise<ReadonlyArray<Batch>>
  /** Delivers the next page; true when a complete cut has been applied or nothing was new. `linesAtMost`: it breaks off before its end. */
  readonly pull: (linesAtMost: number | null) => Promise<boolean>
  readonly count: (sql: string) => number
  readonly list: <A>(sql: string) => ReadonlyArray<A>
  /** The process ends between two steps, and a new one opens the file. */
  readonly reopen: () => Promise<void>
  readonly close: () => Promise<void>
}

export const openNode = async (world: World, folder: string, id: string, incarnation: string): Promise<Node> => {
  const path = join(folder, `${id}.db`)
  const open = async () => {
    const scope = Scope.makeUnsafe()
    const file = await Effect.runPromise(Scope.provide(openFile(path), scope))
    const layer = Layer.build(Deliver.layer.pipe(Layer.provide(Layer.succeed(Libsql, file))))
    return { scope, file, deliver: Context.get(await Effect.runPromise(Scope.provide(layer, scope)), Deliver) }
  }
  let { scope, file, deliver } = await open()
  await world.run(migrateFile(file, "school"))
  await world.run(file.write((tx) => tx.run("INSERT INTO schoolbus_state (id, incarnation, school) VALUES (1, ?, ?)", [incarnation, id])))
  const install = async (): Promise<void> => {
    const manifest = await world.run(world.feed.manifest(id))
    await world.run(hearMissed(file, manifest, (at, keys) => world.compare.again(id, at, {}, keys)))
    await world.run(file.write((tx) => installTables(tx, manifest, { streams: [], adopt: false })))
  }
  await install()
  const program = new Database(path, { timeout: 5000 })
  const prepared = new Map<string, Database.Statement>()
  const prepare = (sql: string): Database.Statement => {
    const statement = prepared.get(sql) ?? program.prepare(sql)
    prepared.set(sql, statement)
    return statement
  }
  const all = (sql: string, args: ReadonlyArray<unknown> = []) =>
    prepare(sql).all(...(args as Array<never>)) as ReadonlyArray<Record<string, unknown>>
  let read = { text: "", manifest: {} as Manifest }
  const manifestOf = async (): Promise<Manifest> => {
    const text = String(all("SELECT manifest FROM schoolbus_state")[0]?.["manifest"])
    if (read.text !== text) read = { text, manifest: JSON.parse(text) as Manifest }
    return read.manifest
  }

  return {
    id,
    incarnation,
    program: (sql, args) => {
      const last = Number(all("SELECT coalesce(max(seq), 0) AS n FROM sqlite_sequence WHERE name = 'changes'")[0]?.["n"] ?? 0)
      prepare(sql).run(...(args as Array<never>))
      return all("SELECT id FROM changes WHERE id > ? AND op <> 'R' ORDER BY id", [last]).map((row) => Number(row["id"]))
    },
    rows: (table) => {
      const names = ["school_id", ...valueColumns(table)]
      const keys = table.key.map((column) => column.name)
      const rows = all(`SELECT ${[...keys, ...names].map((name) => `CAST(${name} AS TEXT) AS ${name}`).join(", ")} FROM ${table.name}`)
      return byKey(
        rows.map((row) => [
          keyOf(keys.map((name) => String(row[name]))),
          Object.fromEntries(names.map((name) => [name, row[name] === null ? null : String(row[name])])),
        ]),
      )
    },
    freeze: async () => {
      const manifest = await manifestOf()
      while ((await world.run(file.write((tx) => freeze(tx, manifest, Date.now())))).batches > 0);
    },
    unsettled: async () => {
      const rows = await world.run(
        file.read((tx) =>
          tx.all<{ number: number; hash: string; bytes: Uint8Array }>(
            "SELECT number, hash, bytes FROM schoolbus_batch WHERE settled_at IS NULL ORDER BY number",
          ),
        ),
      )
      return rows.map(({ number, hash, bytes }) => {
        const text = new TextDecoder().decode(bytesOf(bytes))
        const ids = text
          .split("\n")
          .slice(1)
          .filter((line) => line !== "")
          .map((line) => (JSON.parse(line) as { id: number }).id)
        return { number, hash, text, ids }
      })
    },
    pull: async (linesAtMost) => {
      const { cursor, staged } = await world.run(deliver.position)
      const { version } = await manifestOf()
      const page = await world.run(world.feed.page({ school: id, cursor, staged, manifest: version }))
      if (page.header.manifest !== version) {
        await install()
        await world.run(deliver.empty)
        return false
      }
      if (page.empty) return true
      let header: Header = page.header
      let trailer: Trailer | null = null
      const lines: Array<RowsLine> = []
      for (const text of linesAtMost === null ? page.lines : page.lines.slice(0, Math.min(linesAtMost, page.lines.length - 1))) {
        const opened = openLine(text)
        if ("damaged" in opened) throw new Error(opened.damaged)
        if (isRows(opened.ok)) lines.push(opened.ok)
        else if (opened.ok[0] === "page") trailer = opened.ok[1]
        else if (opened.ok[0] === "cut") header = opened.ok[1]
      }
      if (trailer === null && lines.length === 0) return false
      await world.run(deliver.page(header, lines, trailer))
      return trailer?.complete === true
    },
    count: (sql) => Number(Object.values(all(sql)[0] ?? {})[0] ?? 0),
    list: <A>(sql: string) => all(sql) as ReadonlyArray<A>,
    reopen: async () => {
      await Effect.runPromise(Scope.close(scope, Exit.void))
      ;({ scope, file, deliver } = await open())
      await world.run(deliver.resume)
    },
    close: async () => {
      program.close()
      await Effect.runPromise(Scope.close(scope, Exit.void))
    },
  }
}
