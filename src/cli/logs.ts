/** `logs`: sync runs, newest first; and `config set`: how a running node syncs by itself. */
import type { Page, RunRecord } from "../status/records.ts"
import type { SyncSettings } from "../status/settings.ts"
import { apiOf } from "./api.ts"
import type { Io } from "./io.ts"
import { EXIT, type Input, usage } from "./options.ts"
import { clean, countText, dim, table } from "./text.ts"

const seconds = (run: RunRecord): string =>
  run.endedAt === null ? "under way" : `${((Date.parse(run.endedAt) - Date.parse(run.startedAt)) / 1000).toFixed(1)} s`

const perTable = (run: RunRecord): string =>
  Object.entries(run.tables)
    .map(([name, { up, down }]) => `${name.replace(/^public\./, "")}${up > 0 ? ` ↑${up}` : ""}${down > 0 ? ` ↓${down}` : ""}`)
    .join(", ")

export const list = async (input: Input, io: Io): Promise<number> => {
  const query = new URLSearchParams({ limit: String(input.number("limit")) })
  for (const name of ["school", "cursor"]) {
    const value = input.textOr(name, null)
    if (value !== null) query.set(name, value)
  }
  const page = await apiOf(input).get<Page<RunRecord>>(`/api/sync/logs?${query}`)
  if (input.flag("json")) io.out(`${JSON.stringify({ schemaVersion: 1, ...page })}\n`)
  else if (page.items.length === 0) io.out("No sync run yet.\n")
  else {
    const titles = ["Run", "School", "Started", "Took", "Trigger", "Up", "Down", "Conflicts", "Tables", "Error"]
    const rows = page.items.map((run) => [
      clean(run.id),
      clean(run.school ?? "-"),
      run.startedAt,
      seconds(run),
      clean(run.direction === "both" ? run.trigger : `${run.trigger} (${run.direction})`),
      countText(run.up),
      countText(run.down),
      countText(run.conflicts),
      clean(perTable(run)) || "-",
      clean(run.error ?? "-"),
    ])
    io.out(
      table(
        io.look,
        titles.map((title) => ({ title })),
        rows,
      ),
    )
    if (page.nextCursor !== null) io.out(dim(io.look, `more: the same with --cursor ${page.nextCursor}\n`))
  }
  return EXIT.ok
}

/** `config set auto=false intervalMinutes=15 hours=19:00-06:00`; without a setting it shows them. */
export const set = async (input: Input, io: Io): Promise<number> => {
  const api = apiOf(input)
  const part: Record<string, unknown> = {}
  for (const pair of input.list("set")) {
    const at = pair.indexOf("=")
    if (at < 1) throw usage(`"${pair}" is not NAME=VALUE`, "schoolbus config set --help")
    const [name, value] = [pair.slice(0, at).trim(), pair.slice(at + 1).trim()]
    const isPlain = /^(true|false|null|-?\d+(\.\d+)?)$/.test(value)
    part[name] = name === "hours" ? (value === "" ? [] : value.split("+")) : isPlain ? (JSON.parse(value) as unknown) : value
  }
  const settings =
    Object.keys(part).length === 0 ? await api.get<SyncSettings>("/api/sync/config") : await api.put<SyncSettings>("/api/sync/config", part)
  if (input.flag("json")) io.out(`${JSON.stringify(settings)}\n`)
  else {
    io.out(
      table(
        io.look,
        ["Setting", "Value"].map((title) => ({ title })),
        Object.entries(settings).map(([name, value]) => [name, Array.isArray(value) ? value.join(", ") || "-" : String(value ?? "-")]),
      ),
    )
  }
  return EXIT.ok
}
