/** `devices …` at a school node: which terminals may send punches, and what they hold. */
import { apiOf } from "./api.ts"
import type { Io } from "./io.ts"
import { EXIT, type Input, usage } from "./options.ts"
import { clean, table } from "./text.ts"

type Fields = Readonly<Record<string, unknown>>

const text = (value: unknown): string => (value === null || value === undefined || value === "" ? "-" : clean(String(value)))

/** The rows of an answer, whichever of the two accepted forms it has. */
const itemsOf = (answer: Fields): ReadonlyArray<Fields> => {
  const items = answer["items"] ?? answer["data"]
  return Array.isArray(items) ? (items as ReadonlyArray<Fields>) : []
}

const deviceOf = (input: Input): string => encodeURIComponent(input.args["serial"] ?? "")

export const list = async (input: Input, io: Io): Promise<number> => {
  const answer = await apiOf(input).get<Fields>("/api/devices")
  if (input.flag("json")) {
    io.out(`${JSON.stringify(answer)}\n`)
    return EXIT.ok
  }
  const items = itemsOf(answer)
  if (items.length === 0) io.out("No terminal has called yet. Set its server address to this machine and the iclock port.\n")
  else {
    const columns = ["Serial", "Name", "State", "Zone", "Last seen", "Address"].map((title) => ({ title }))
    io.out(
      table(
        io.look,
        columns,
        items.map((d) => [
          text(d["serial"]),
          text(d["name"]),
          text(d["status"] ?? d["state"]),
          text(d["zone"]),
          text(d["lastSeenAt"]),
          text(d["address"]),
        ]),
      ),
    )
  }
  return EXIT.ok
}

const isZone = (zone: string): boolean => {
  try {
    new Intl.DateTimeFormat("en", { timeZone: zone })
    return true
  } catch {
    return false
  }
}

export const approve = async (input: Input, io: Io): Promise<number> => {
  const zone = input.textOr("zone", null)
  const name = input.textOr("name", null)
  if (zone !== null && !isZone(zone)) throw usage(`--zone ${zone} is not a time zone`, "it looks like Africa/Nairobi")
  const answer = await apiOf(input).post<Fields>(`/api/devices/${deviceOf(input)}/approve`, {
    ...(zone === null ? {} : { zone }),
    ...(name === null ? {} : { name }),
  })
  io.out(
    input.flag("json")
      ? `${JSON.stringify(answer)}\n`
      : `Terminal ${clean(input.args["serial"] ?? "")} is approved; it gets its people at its next call.\n`,
  )
  return EXIT.ok
}

export const status = async (input: Input, io: Io): Promise<number> => {
  const answer = await apiOf(input).get<Fields>(`/api/devices/${deviceOf(input)}/sync-status`)
  if (input.flag("json")) {
    io.out(`${JSON.stringify(answer)}\n`)
    return EXIT.ok
  }
  const data = (answer["data"] ?? answer) as { readonly summary?: Fields; readonly students?: ReadonlyArray<Fields> }
  io.out(
    `${Object.entries(data.summary ?? {})
      .map(([key, n]) => `${key.replaceAll("_", " ")} ${String(n)}`)
      .join(", ")}\n`,
  )
  const students = data.students ?? []
  if (students.length > 0) {
    const columns = ["Pin", "Name", "Card", "State", "Attempts", "Error"].map((title) => ({ title }))
    io.out(
      `\n${table(
        io.look,
        columns,
        students.map((s) => [
          text(s["pin"]),
          text(s["name"]),
          text(s["card"]),
          text(s["status"] ?? s["sync_status"]),
          text(s["attempts"]),
          text(s["error"]),
        ]),
      )}`,
    )
  }
  return EXIT.ok
}

export const sync = async (input: Input, io: Io): Promise<number> => {
  const answer = await apiOf(input).post<Fields>(`/api/devices/${deviceOf(input)}/sync-students`)
  io.out(input.flag("json") ? `${JSON.stringify(answer)}\n` : `${text(answer["message"] ?? "Full sync queued")}\n`)
  return EXIT.ok
}
