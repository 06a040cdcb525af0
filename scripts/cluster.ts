/**
 * A private Postgres in a temporary folder: own port, own files, nothing of an installed server is touched. It goes away
 * with the process that started it, however that ends: a small watchdog waits for the end of its standard input, then
 * stops the server and removes the folder, so even `kill -9` of a test run leaves nothing behind.
 *
 * Uses `node:` modules only: setup runs it before any package is installed.
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process"
import { chmodSync, chownSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { embeddedBin } from "./embedded.ts"

const START_TIMEOUT_MS = 60_000
const STOP_TIMEOUT_MS = 60_000

export interface ServerBinaries {
  /** Folder with `postgres`, `initdb`, `pg_recvlogical`. */
  readonly bin: string
  /** `"15"` */
  readonly major: string
  /** Folder of loadable modules, where `wal2json.so` must be. */
  readonly pkglibdir: string
  readonly wal2json: boolean
}

export interface ClusterOptions {
  /** False: a server without wal2json will do, also the one from npm. */
  readonly wal2json?: boolean
  /** False (tests, demo): a crash of the machine may lose the cluster, a crash of the server may not. */
  readonly fsync?: boolean
  /** Where its own folder is made; else among the temporary ones. */
  readonly folder?: string
  /** Further lines of postgresql.conf by name. */
  readonly settings?: Readonly<Record<string, string>>
}

export type StopMode = "fast" | "immediate"

export interface Cluster {
  readonly dir: string
  readonly port: number
  readonly binaries: ServerBinaries
  /** `postgres://postgres@127.0.0.1:PORT/DATABASE` */
  readonly url: (database?: string) => string
  readonly start: () => Promise<void>
  /** `fast` disconnects clients and writes a checkpoint; `immediate` does neither, as after a power cut. */
  readonly stop: (mode?: StopMode) => Promise<void>
  readonly restart: (mode?: StopMode) => Promise<void>
  /** `kill -9` of the postmaster; returns when all its processes are gone. */
  readonly kill: () => Promise<void>
  /** Last lines of the server's log. */
  readonly log: (lines?: number) => string
  /** Stops the server and deletes its folder. */
  readonly remove: () => Promise<void>
}

const output = (command: string, args: ReadonlyArray<string>): string | undefined => {
  try {
    return execFileSync(command, [...args], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim()
  } catch {
    return undefined
  }
}

const children = (folder: string): Array<string> => {
  try {
    return readdirSync(folder).map((name) => join(folder, name))
  } catch {
    return []
  }
}

const versionOf = (folder: string): number => Number.parseInt(/(\d+)[^/]*$/.exec(folder)?.[1] ?? "0", 10)

/** Where servers are: Debian and PGDG, Fedora and Alpine (pg_config, PATH), Homebrew; at last the one from npm. */
const candidates = (): ReadonlyArray<string> => [
  ...children("/usr/lib/postgresql")
    .sort((a, b) => versionOf(b) - versionOf(a))
    .map((folder) => join(folder, "bin")),
  ...[output("pg_config", ["--bindir"]) ?? ""],
  ...(process.env.PATH ?? "").split(":"),
  ...["/opt/homebrew/opt", "/usr/local/opt"]
    .flatMap((opt) => children(opt).filter((folder) => /\/postgresql(@\d+)?$/.test(folder)))
    .sort((a, b) => versionOf(b) - versionOf(a))
    .map((folder) => join(folder, "bin")),
  embeddedBin,
]

const inspect = (bin: string): ServerBinaries | undefined => {
  if (bin === "" || !existsSync(join(bin, "postgres")) || !existsSync(join(bin, "initdb"))) return undefined
  const major = /\) (\d+)/.exec(output(join(bin, "postgres"), ["--version"]) ?? "")?.[1]
  if (major === undefined) return undefined
  const config = existsSync(join(bin, "pg_config")) ? join(bin, "pg_config") : "pg_config"
  // The pg_config of the PATH is that of another server.
  const pkglibdir = bin === embeddedBin ? join(bin, "../lib/postgresql") : (output(config, ["--pkglibdir"]) ?? join(bin, "..", "lib"))
  return { bin, major, pkglibdir, wal2json: ["so", "dylib"].some((suffix) => existsSync(join(pkglibdir, `wal2json.${suffix}`))) }
}

/** Servers of this machine, those with wal2json first. A server older than 14 is not listed: its slots lack what we ask for. */
export const findServers = (): ReadonlyArray<ServerBinaries> => {
  const found = candidates().flatMap((bin) => inspect(bin) ?? [])
  const usable = found.filter((server, i) => Number(server.major) >= 14 && found.findIndex((other) => other.bin === server.bin) === i)
  return [...usable.filter((server) => server.wal2json), ...usable.filter((server) => !server.wal2json)]
}

export const findServer = (needsWal2json = true): ServerBinaries => {
  const server = findServers()[0]
  if (server === undefined || (needsWal2json && !server.wal2json))
    throw new Error(`no Postgres server${needsWal2json ? " with wal2json" : ""} on this machine; \`bun run setup\` installs it or says how`)
  return server
}

/** initdb refuses to run as root: then everything belongs to `postgres` (made by the package) or `nobody`. */
const unprivileged = (): { readonly uid: number; readonly gid: number } | undefined => {
  if (process.getuid?.() !== 0) return undefined
  const users = readFileSync("/etc/passwd", "utf8")
    .split("\n")
    .map((line) => line.split(":"))
  const user = users.find((fields) => fields[0] === "postgres") ?? users.find((fields) => fields[0] === "nobody")
  if (user === undefined) throw new Error("running as root and neither user `postgres` nor `nobody` exists; add one: useradd --system postgres")
  return { uid: Number(user[2]), gid: Number(user[3]) }
}

export const freePort = (): Promise<number> =>
  new Promise((resolve, reject) => {
    const server = createServer()
    server.once("error", reject)
    server.listen(0, "127.0.0.1", () => {
      const address = server.address()
      server.close(() => (typeof address === "object" && address !== null ? resolve(address.port) : reject(new Error("no free port"))))
    })
  })

const WATCHDOG = `
trap '' INT TERM HUP
cat > /dev/null
pid=$(head -n 1 "$1/data/postmaster.pid" 2> /dev/null) && kill -QUIT "$pid" 2> /dev/null
n=0; while [ -n "$pid" ] && kill -0 "$pid" 2> /dev/null && [ $n -lt 100 ]; do sleep 0.1; n=$((n + 1)); done
rm -rf "$1"
`

const poll = async (what: string, timeoutMs: number, done: () => boolean): Promise<void> => {
  for (const deadline = Date.now() + timeoutMs; !done(); ) {
    if (Date.now() > deadline) throw new Error(`${what} took longer than ${timeoutMs / 1000} s`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

const alive = (pid: number): boolean => {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

/** Makes and starts a cluster with one superuser, `postgres`, without password, reachable on 127.0.0.1 only. */
export const startCluster = async (options: ClusterOptions = {}): Promise<Cluster> => {
  const binaries = findServer(options.wal2json ?? true)
  const owner = unprivileged()
  const dir = mkdtempSync(join(options.folder ?? tmpdir(), "schoolbus-pg-"))
  const data = join(dir, "data")
  chmodSync(dir, 0o755)
  mkdirSync(data, { mode: 0o700 })
  if (owner !== undefined) for (const folder of [dir, data]) chownSync(folder, owner.uid, owner.gid)

  const watchdog = spawn("/bin/sh", ["-c", WATCHDOG, "schoolbus-watchdog", dir], { detached: true, stdio: ["pipe", "ignore", "ignore"] })
  watchdog.unref()

  const identity = { ...owner, cwd: dir, env: { ...process.env, LC_ALL: "C", TZ: "UTC", HOME: dir } }
  try {
    execFileSync(
      join(binaries.bin, "initdb"),
      ["-D", data, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"],
      { ...identity, stdio: ["ignore", "ignore", "pipe"] },
    )
  } catch (cause) {
    watchdog.stdin?.end()
    throw new Error(`initdb failed: ${String((cause as { stderr?: unknown }).stderr ?? cause)}`)
  }

  const port = await freePort()
  const settings: Record<string, string> = {
    listen_addresses: "'127.0.0.1'",
    port: String(port),
    unix_socket_directories: `'${dir}'`,
    wal_level: "logical",
    track_commit_timestamp: "on",
    max_connections: "200",
    max_wal_senders: "20",
    max_replication_slots: "20",
    timezone: "'UTC'",
    fsync: options.fsync === false ? "off" : "on",
    full_page_writes: options.fsync === false ? "off" : "on",
    ...options.settings,
  }
  writeFileSync(
    join(data, "postgresql.auto.conf"),
    Object.entries(settings)
      .map(([name, value]) => `${name} = ${value}\n`)
      .join(""),
  )

  let server: ChildProcess | undefined
  let exited = true
  const pidFile = join(data, "postmaster.pid")
  const logFile = join(dir, "postgres.log")
  const log = (lines = 20): string => (existsSync(logFile) ? readFileSync(logFile, "utf8").trimEnd().split("\n").slice(-lines).join("\n") : "")

  const start = async (): Promise<void> => {
    if (!exited) return
    exited = false
    // A shell opens the log as the server's owner, then becomes the server: the pid stays the same.
    const child = spawn("/bin/sh", ["-c", 'exec "$0" -D "$1" >> "$2" 2>&1', join(binaries.bin, "postgres"), data, logFile], {
      ...identity,
      detached: true,
      stdio: ["ignore", "ignore", "ignore"],
    })
    server = child
    child.once("exit", () => (exited = true))
    child.unref()
    // The postmaster itself writes "ready" into the eighth line of its pid file.
    await poll(`start of Postgres in ${dir}`, START_TIMEOUT_MS, () => {
      if (exited) throw new Error(`Postgres did not start:\n${log()}`)
      if (!existsSync(pidFile)) return false
      const lines = readFileSync(pidFile, "utf8").split("\n")
      return Number(lines[0]) === child.pid && lines[7]?.trim() === "ready"
    })
  }

  const stopped = async (): Promise<void> => {
    const pid = server?.pid
    await poll(`stop of Postgres in ${dir}`, STOP_TIMEOUT_MS, () => exited || pid === undefined || !alive(pid))
    exited = true
  }
  const stop = async (mode: StopMode = "fast"): Promise<void> => {
    if (!exited) server?.kill(mode === "fast" ? "SIGINT" : "SIGQUIT")
    await stopped()
  }
  const kill = async (): Promise<void> => {
    const pid = server?.pid
    const processes = (output("ps", ["-A", "-o", "pid=,ppid="]) ?? "").split("\n").map((line) => line.trim().split(/\s+/).map(Number))
    const backends = processes.flatMap(([child, parent]) => (child !== undefined && parent === pid ? [child] : []))
    if (!exited) server?.kill("SIGKILL")
    await stopped()
    // Backends notice the end of the postmaster by themselves; a new one refuses to start before that.
    await poll(`end of the backends of Postgres in ${dir}`, STOP_TIMEOUT_MS, () => !backends.some(alive))
  }
  const cluster: Cluster = {
    dir,
    port,
    binaries,
    url: (database = "postgres") => `postgres://postgres@127.0.0.1:${port}/${database}`,
    start,
    stop,
    restart: async (mode) => {
      await stop(mode)
      await start()
    },
    kill,
    log,
    remove: async () => {
      await stop("immediate")
      watchdog.stdin?.end()
      rmSync(dir, { recursive: true, force: true })
    },
  }
  try {
    await start()
  } catch (cause) {
    await cluster.remove()
    throw cause
  }
  return cluster
}
