/**
 * Everything that the demo plays with, on this machine and gone afterwards: a private Postgres with the example school, a
 * hub, two schools, a terminal in the first, and a line to the hub that can be cut at each school.
 *
 *     Postgres ── hub ──┬── line ── north ── terminal
 *                       └── line ── south
 */
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { pathToFileURL } from "node:url"
import Database from "libsql"
import postgres from "postgres"
import { type Cluster, freePort, startCluster } from "../cluster.ts"
import { schoolbus, type Service, service, watch } from "./process.ts"
import { type Line, openLine } from "./proxy.ts"

const root = join(import.meta.dirname, "../..")
export const SERIAL = "DEMO240300017"

export type Cell = string | number | bigint | null
export type FileRow = Readonly<Record<string, Cell>>

export interface School {
  readonly id: string
  readonly service: Service
  readonly line: Line
  readonly url: string
  readonly dir: string
  /** What a program of the school does: opens school.db, with a busy timeout, and writes; the time it took in ms. */
  readonly write: (sql: string, ...args: ReadonlyArray<Cell>) => number
  readonly rows: (sql: string, ...args: ReadonlyArray<Cell>) => ReadonlyArray<FileRow>
}

export interface TerminalUser {
  readonly pin: string
  readonly name: string
  readonly card: string
}

export interface Terminal {
  readonly service: Service
  /** `time`: what its clock shows, `2026-03-03 07:41:09`; default now. */
  readonly punch: (pin: string, time?: string) => void
  /** What stands in the terminal's own memory. */
  readonly users: () => ReadonlyArray<TerminalUser>
  readonly unsent: () => number
  readonly punches: () => number
}

export interface Stage {
  readonly dir: string
  readonly cluster: Cluster
  readonly databaseUrl: string
  readonly sql: postgres.Sql
  readonly hub: Service
  readonly hubUrl: string
  readonly north: School
  readonly south: School
  readonly terminal: Terminal
  readonly close: () => Promise<void>
}

const openSchool = (id: string, dir: string, port: number, node: Service, line: Line): School => {
  // Opened when first used: the node makes the file.
  let file: Database.Database | undefined
  const open = (): Database.Database => (file ??= new Database(join(dir, "school.db"), { timeout: 5000 }))
  return {
    id,
    dir,
    line,
    service: node,
    url: `http://127.0.0.1:${port}`,
    write: (sql, ...args) => {
      const began = performance.now()
      open()
        .prepare(sql)
        .run(...args)
      return performance.now() - began
    },
    rows: (sql, ...args) =>
      existsSync(join(dir, "school.db"))
        ? (open()
            .prepare(sql)
            .all(...args) as ReadonlyArray<FileRow>)
        : [],
  }
}

const openTerminal = (dir: string, iclockPort: number): Terminal => {
  const file = join(dir, "terminal.json")
  const device = service(dir, "terminal", "device/simulator.ts", [
    ...["--server", `http://127.0.0.1:${iclockPort}`, "--serial", SERIAL],
    ...["--data", file, "--interval", "0.5"],
  ])
  const memory = (): { users: Array<TerminalUser>; unsent: Array<string>; punches: number } =>
    existsSync(file) ? JSON.parse(readFileSync(file, "utf8")) : { users: [], unsent: [], punches: 0 }
  return {
    service: device,
    punch: (pin, time = "") => device.write(`punch ${pin} ${time}`),
    users: () => memory().users,
    unsent: () => memory().unsent.length,
    punches: () => memory().punches,
  }
}

const enrol = async (databaseUrl: string, id: string, name: string): Promise<string> => {
  const { code, out, err } = await schoolbus("schools", "add", id, "--name", name, "--database-url", databaseUrl, "--json")
  if (code !== 0) throw new Error(`schools add ${id} failed: ${out}${err}`)
  return (JSON.parse(out) as { key: string }).key
}

export const openStage = async (say: (line: string) => void): Promise<Stage> => {
  const dir = mkdtempSync(join(tmpdir(), "schoolbus-demo-"))
  chmodSync(dir, 0o700)
  const watchdog = watch(dir)
  const opened: Array<() => Promise<unknown> | unknown> = [() => watchdog.stdin?.end(), () => rmSync(dir, { recursive: true, force: true })]
  const close = async (): Promise<void> => {
    // What cannot be ended keeps nothing else from its end; the watchdog takes what is left.
    for (const end of opened.splice(0).reverse()) await Promise.resolve(end()).catch(() => undefined)
  }
  try {
    say("Postgres, with the example school")
    const cluster = await startCluster({ fsync: false, wal2json: false })
    opened.push(cluster.remove)
    const databaseUrl = cluster.url()
    const sql = postgres(databaseUrl, {
      max: 4,
      onnotice: () => undefined,
      fetch_types: false,
      connection: { TimeZone: "UTC", DateStyle: "ISO, MDY", application_name: "head office" },
    })
    opened.push(() => sql.end({ timeout: 1 }))
    for (const file of readdirSync(join(root, "sql/example")).sort()) await sql.unsafe(readFileSync(join(root, "sql/example", file), "utf8")).simple()

    // A server without wal2json streams with the plugin that every Postgres has.
    const config = cluster.binaries.wal2json ? join(root, "schoolbus.config.ts") : join(dir, "schoolbus.config.ts")
    if (!cluster.binaries.wal2json) {
      say(`the stream with pgoutput: ${cluster.binaries.bin} has no wal2json`)
      const url = pathToFileURL(join(root, "schoolbus.config.ts")).href
      writeFileSync(config, `import rules from ${JSON.stringify(url)}\nexport default { ...rules, plugin: "pgoutput" }\n`)
    }

    say("hub, two schools, one terminal")
    const [hubPort, iclockPort, ...ports] = [
      await freePort(),
      await freePort(),
      await freePort(),
      await freePort(),
      await freePort(),
      await freePort(),
    ]
    const [northPort = 0, northLine = 0, southPort = 0, southLine = 0] = ports
    const hub = service(dir, "hub", "src/main.ts", [
      ...["hub", "--config", config, "--database-url", databaseUrl],
      ...["--data-dir", join(dir, "hub"), "--port", String(hubPort)],
    ])
    const school = async (id: string, name: string, port: number, linePort: number, more: ReadonlyArray<string>): Promise<School> => {
      const key = await enrol(databaseUrl, id, name)
      const line = await openLine(linePort, hubPort)
      opened.push(line.close)
      const data = join(dir, id)
      mkdirSync(data)
      const node = service(dir, id, "src/main.ts", [
        ...["school", "--hub", `http://127.0.0.1:${linePort}`, "--key", key, "--data-dir", data, "--port", String(port)],
        ...more,
      ])
      return openSchool(id, data, port, node, line)
    }
    const north = await school("north", "North Primary", northPort, northLine, [
      ...["--iclock-port", String(iclockPort)],
      ...["--workers", join(import.meta.dirname, "workers")],
    ])
    const south = await school("south", "South Primary", southPort, southLine, [])
    const terminal = openTerminal(dir, iclockPort)
    const services = [hub, north.service, south.service, terminal.service]
    opened.push(() => Promise.all(services.map((one) => one.kill())))
    for (const one of services) one.start()
    return { dir, cluster, databaseUrl, sql, hub, hubUrl: `http://127.0.0.1:${hubPort}`, north, south, terminal, close }
  } catch (cause) {
    await close()
    throw cause
  }
}
