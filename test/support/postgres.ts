/**
 * A database per test in the run's private Postgres (`wal_level=logical`, `track_commit_timestamp=on`, fsync off).
 * A test that stops, kills or restarts its server starts one of its own: `startCluster` of `scripts/cluster.ts`.
 */
import postgres from "postgres"
import { inject } from "vitest"
import { startCluster } from "../../scripts/cluster.ts"

export interface TestCluster {
  /** `postgres://postgres@127.0.0.1:PORT/DATABASE` of a superuser without password. */
  readonly url: (database?: string) => string
  readonly port: number
}

export interface Database {
  readonly url: string
  readonly name: string
  /** Ends its connections, drops its slots and the database. */
  readonly drop: () => Promise<void>
}

const ask = async (): Promise<TestCluster> => {
  const door = inject("clusterDoor") as string | undefined
  // A single file run without test/vitest.config.ts has a cluster of its own; it ends with this process.
  if (door === undefined) return await startCluster({ fsync: false })
  const response = await fetch(door)
  const text = await response.text()
  if (!response.ok) throw new Error(text)
  const base = new URL(text)
  return {
    port: Number(base.port),
    url: (database = "postgres") => Object.assign(new URL(base), { pathname: `/${database}` }).href,
  }
}

let cluster: Promise<TestCluster> | undefined

/** The run's server; started by the first call of any file. */
export const testCluster = (): Promise<TestCluster> => (cluster ??= ask())

/** Runs statements on one connection: `await run(db.url, "CREATE TABLE …")`. Returns the rows of the last one. */
export const run = async (url: string, statements: string, params: ReadonlyArray<unknown> = []): Promise<ReadonlyArray<Record<string, unknown>>> => {
  const sql = postgres(url, { max: 1, onnotice: () => undefined, fetch_types: false })
  try {
    return [...(params.length === 0 ? await sql.unsafe(statements).simple().then(lastResult) : await sql.unsafe(statements, params as never))]
  } finally {
    await sql.end({ timeout: 2 })
  }
}

const lastResult = (result: unknown): ReadonlyArray<Record<string, unknown>> => {
  const results = result as ReadonlyArray<ReadonlyArray<Record<string, unknown>> | Record<string, unknown>>
  const last = results.at(-1)
  return Array.isArray(last) ? last : (results as ReadonlyArray<Record<string, unknown>>)
}

let admin: postgres.Sql | undefined
/** One connection for everything that is done about databases; a process that has nothing more to do need not wait for it. */
const asAdmin = async (): Promise<postgres.Sql> => {
  const { url } = await testCluster()
  admin ??= postgres(url(), { max: 1, onnotice: () => undefined, fetch_types: false, idle_timeout: 10 })
  return admin
}

const dropDatabase = async (name: string): Promise<void> => {
  const sql = await asAdmin()
  // A slot is freed a moment after its walsender was told to end.
  for (const deadline = Date.now() + 20_000; ; ) {
    await sql`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = ${name}`
    await sql`SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = ${name} AND NOT active`
    const [left] = await sql`SELECT count(*)::int AS n FROM pg_replication_slots WHERE database = ${name}`
    if (left?.n === 0 || Date.now() > deadline) break
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  await sql.unsafe(`DROP DATABASE IF EXISTS "${name}" WITH (FORCE)`)
}

/** An empty database, or a copy of `template` (which nobody may be connected to while it is copied). `encoding`: else that of the server. */
export const createDatabase = async (template?: string, encoding?: string): Promise<Database> => {
  const { url } = await testCluster()
  const name = `t_${crypto.randomUUID().replaceAll("-", "").slice(0, 16)}`
  const sql = await asAdmin()
  await sql.unsafe(
    `CREATE DATABASE "${name}"${template === undefined ? "" : ` TEMPLATE "${template}"`}${encoding === undefined ? "" : ` ENCODING '${encoding}'`}`,
  )
  return { name, url: url(name), drop: () => dropDatabase(name) }
}

/** The name of a database that `fill` has filled, to copy from: the first of the run's processes that asks makes it. */
export const templateDatabase = async (name: string, fill: (url: string) => Promise<void>): Promise<string> => {
  const { url } = await testCluster()
  const sql = postgres(url(), { max: 1, onnotice: () => undefined, fetch_types: false })
  try {
    // Held by the session, so that a process that ends while it fills leaves neither the lock nor the name.
    await sql`SELECT pg_advisory_lock(hashtext(${name}))`
    const [found] = await sql`SELECT 1 FROM pg_database WHERE datname = ${name}`
    if (found === undefined) {
      await sql.unsafe(`DROP DATABASE IF EXISTS "${name}_unfinished" WITH (FORCE)`)
      await sql.unsafe(`CREATE DATABASE "${name}_unfinished"`)
      await fill(url(`${name}_unfinished`))
      await sql.unsafe(`ALTER DATABASE "${name}_unfinished" RENAME TO "${name}"`)
    }
    return name
  } finally {
    await sql.end({ timeout: 2 })
  }
}
