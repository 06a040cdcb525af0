/** A head office with tables of a test's choice, and schools that push batches to it; no feed and no files. */
import { createHash, randomUUID } from "node:crypto"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as ManagedRuntime from "effect/ManagedRuntime"
import { type BatchHeader, encodeBatch, encodeChange } from "../../src/model/batch.ts"
import type { Change, Exception, Verdicts } from "../../src/model/change.ts"
import type { Table } from "../../src/model/table.ts"
import { readCatalog } from "../../src/postgres/catalog.ts"
import { Postgres, type PostgresPool } from "../../src/postgres/client.ts"
import { migrateHub } from "../../src/postgres/migrate.ts"
import { Apply } from "../../src/up/apply.ts"
import { Tables } from "../../src/up/tables.ts"
import { createDatabase, run } from "../support/postgres.ts"

export interface Rule {
  readonly audience?: Table["audience"]
  readonly direction?: Table["direction"]
  readonly strategy?: Table["strategy"]
  readonly columns?: Table["columnStrategies"]
  readonly exclude?: Table["exclude"]
  readonly uniqueRule?: Table["uniqueRule"]
}
export type Draft = Partial<Change> & Pick<Change, "table" | "op" | "key">
export interface HeaderDraft {
  readonly contacts?: BatchHeader["contacts"]
  readonly origin?: string
}

export interface OfficeOptions {
  /** Another role than the owner applies the pushes. */
  readonly role?: string
  /** Of the database, which is in UTF8 else. */
  readonly encoding?: string
  /** Without it the school had every row that is gone. */
  readonly had?: Tables["Service"]["had"]
}

/** `rules`: by table, without its schema; a table belongs to the school in `school_id` unless said otherwise. */
export const openOffice = async (ddl: string, rules: Readonly<Record<string, Rule>>, options: OfficeOptions = {}) => {
  const db = await (options.encoding === undefined ? createDatabase() : createDatabase("template0", options.encoding))
  const owner = ManagedRuntime.make(Postgres.layer(db.url, "test"))
  await owner.runPromise(Effect.flatMap(Postgres, migrateHub))
  const sql = (text: string): Promise<ReadonlyArray<Record<string, unknown>>> => run(db.url, text)
  await sql("INSERT INTO schoolbus.schools (id, name) VALUES ('a', 'A'), ('b', 'B')")
  await sql(ddl)
  const wanted = Object.entries(rules).map(([name, rule]) => ({
    name: `public.${name}`,
    audience: rule.audience ?? { column: "school_id" },
    direction: rule.direction ?? ("both" as const),
    priority: "medium" as const,
    strategy: rule.strategy ?? ("vps_wins" as const),
    columnStrategies: rule.columns ?? {},
    exclude: rule.exclude ?? [],
    uniqueRule: rule.uniqueRule ?? ("manual" as const),
    system: false,
  }))
  const catalog = await owner.runPromise(Effect.flatMap(Postgres, (pg) => pg.tx((session) => readCatalog(session, wanted))))
  const problems = [...catalog.problems, ...catalog.found.flatMap((found) => found.problems.map(({ text }) => text))]
  if (problems.length > 0) throw new Error(problems.join("\n"))
  const all = new Map(catalog.tables.map((table) => [table.name, table]))

  const url = options.role === undefined ? db.url : Object.assign(new URL(db.url), { username: options.role }).href
  const isGone = async (name: string, key: string): Promise<boolean> => {
    const values = JSON.parse(key) as ReadonlyArray<unknown>
    const where = (all.get(name)?.key ?? []).map((column, i) => `"${column}"::text = '${String(values[i]).replaceAll("'", "''")}'`)
    const [schema, table] = name.split(".")
    return (await sql(`SELECT 1 AS one FROM "${schema}"."${table}" WHERE ${where.join(" AND ")}`)).length === 0
  }
  const gone: Tables["Service"]["had"] = (_, name, keys) =>
    Effect.promise(async () => {
      const found = new Set<string>()
      for (const key of keys) if (await isGone(name, key)) found.add(key)
      return found
    })
  const had = options.had ?? gone
  const tables = Layer.succeed(Tables, { all: Effect.succeed(all), had })
  const runtime = ManagedRuntime.make(Apply.layer.pipe(Layer.provide(tables), Layer.provideMerge(Postgres.layer(url, "test"))))

  return {
    sql,
    url: db.url,
    tables: all,
    had,
    withPg: <A, E>(body: (pg: PostgresPool) => Effect.Effect<A, E>): Promise<A> => runtime.runPromise(Effect.flatMap(Postgres, body)),
    close: async () => {
      await runtime.dispose()
      await owner.dispose()
      await db.drop()
    },
    /** One life of a school's file. */
    school: (school: string, incarnation = randomUUID()) => {
      let number = 0
      let id = 0
      const text = (batch: number, drafts: ReadonlyArray<Draft>, header: HeaderDraft = {}): string =>
        encodeBatch(
          { incarnation, number: batch, manifest: 1, contacts: [], ...header, changes: drafts.length },
          drafts.map((draft) =>
            encodeChange({
              id: ++id,
              at: Date.now(),
              base: {},
              mine: {},
              ...draft,
              table: draft.table.includes(".") ? draft.table : `public.${draft.table}`,
            }),
          ),
        )
      const send = (batch: number, body: string, now = Date.now()): Promise<Verdicts> =>
        runtime.runPromise(
          Effect.flatMap(Apply, (apply) =>
            apply.batch({ school, incarnation, number: batch, hash: createHash("sha256").update(body).digest("hex"), text: body, now }),
          ),
        )
      return {
        incarnation,
        text,
        send,
        push: async (drafts: ReadonlyArray<Draft>, header: HeaderDraft = {}) => {
          const first = id + 1
          const verdicts = await send(number + 1, text(number + 1, drafts, header))
          number++
          const of = (i: number): ReadonlyArray<Exception> => verdicts.exceptions.filter((exception) => exception.id === first + i)
          return {
            exceptions: verdicts.exceptions,
            of,
            verdict: (i: number) => of(i)[0]?.verdict ?? "applied",
            reason: (i: number) => of(i)[0]?.reason,
            record: (i: number) => of(i)[0]?.record ?? "",
          }
        },
      }
    },
  }
}

export type Office = Awaited<ReturnType<typeof openOffice>>
