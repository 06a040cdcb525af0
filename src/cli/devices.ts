/** `devices …` at a school node: which terminals may send punches, what they hold, and what they are told. */
import { writeFile } from "node:fs/promises"
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
    const columns = ["Id", "Serial", "Name", "State", "Zone", "Last seen", "Address"].map((title) => ({ title }))
    io.out(
      table(
        io.look,
        columns,
        items.map((d) => [
          text(d["id"]),
          text(d["serial"]),
          text(d["name"]),
          text(d["status"] ?? d["state"]),
          text(d["zone"]),
          text(d["lastSeenAt"]),
          text(d["address"]),
        ]),
      ),
    )
    for (const d of items) for (const alert of (d["alerts"] ?? []) as ReadonlyArray<unknown>) io.out(`${text(d["serial"])}: ${text(alert)}\n`)
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
  const address = input.textOr("address", null)
  const answer = await apiOf(input).post<Fields>(`/api/devices/${deviceOf(input)}/approve`, {
    ...(zone === null ? {} : { zone }),
    ...(name === null ? {} : { name }),
    ...(address === null ? {} : { address: address === "any" ? "" : address }),
  })
  io.out(
    input.flag("json")
      ? `${JSON.stringify(answer)}\n`
      : answer["lastSeenAt"] == null
        ? `Terminal ${clean(input.args["serial"] ?? "")} is approved, but has never called: see that this is its serial number, and its cloud settings.\n`
        : `Terminal ${clean(input.args["serial"] ?? "")} is approved, its clock in zone ${text(answer["zone"])}; it gets its people at its next call.\n`,
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
    const columns = ["Pin", "Name", "Card", "Class", "State", "Last success", "Attempts", "Error"].map((title) => ({ title }))
    io.out(
      `\n${table(
        io.look,
        columns,
        students.map((s) => [
          text(s["pin"]),
          text(s["name"]),
          text(s["card"]),
          text(s["class"]),
          text(s["status"] ?? s["sync_status"]),
          text(s["lastSuccessAt"]),
          text(s["attempts"]),
          text(s["error"]),
        ]),
      )}`,
    )
  }
  for (const line of others(answer)) io.out(`${line}\n`)
  return EXIT.ok
}

/** The lists below the people: whom the terminal has of its own, and whose punches nobody is known for. */
const others = (answer: Fields): ReadonlyArray<string> => [
  ...((answer["terminalUsers"] ?? []) as ReadonlyArray<Fields>).map((user) => `on the terminal only: pin ${text(user["pin"])} ${text(user["name"])}`),
  ...((answer["unknownPins"] ?? []) as ReadonlyArray<Fields>).map(
    (pin) => `nobody is known for pin ${text(pin["pin"])}: ${text(pin["punches"])} punches, last ${text(pin["last"])}; see: schoolbus devices claim`,
  ),
]

/** One answer of the API, as it is or in a sentence. */
const say = (input: Input, io: Io, answer: Fields, sentence: string): number => {
  io.out(input.flag("json") ? `${JSON.stringify(answer)}\n` : `${sentence}\n`)
  return EXIT.ok
}

export const retire = async (input: Input, io: Io): Promise<number> => {
  const answer = await apiOf(input).post<Fields>(`/api/devices/${deviceOf(input)}/retire`)
  return say(input, io, answer, `Terminal ${text(answer["serial"])} is retired: it gets no more answers; its punches and pins stay.`)
}

export const replace = async (input: Input, io: Io): Promise<number> => {
  const serial = input.args["new-serial"] ?? ""
  const answer = await apiOf(input).post<Fields>(`/api/devices/${deviceOf(input)}/replace`, { serial })
  return say(
    input,
    io,
    answer,
    `Terminal ${text(answer["serial"])} takes over name, zone, pins and people, and the --address that calls must come from; the old one is retired.`,
  )
}

export const claim = async (input: Input, io: Io): Promise<number> => {
  const table = input.textOr("table", null)
  const answer = await apiOf(input).post<Fields>(`/api/devices/${deviceOf(input)}/claims`, {
    pin: input.args["pin"] ?? "",
    person: input.args["person"] ?? "",
    ...(table === null ? {} : { table }),
  })
  return say(input, io, answer, `${text(answer["punches"])} punches of pin ${text(input.args["pin"])} have their person now.`)
}

export const command = async (input: Input, io: Io): Promise<number> => {
  const optional = (name: string) => {
    const value = input.textOr(name, null)
    return value === null ? {} : { [name]: value }
  }
  const answer = await apiOf(input).post<Fields>(`/api/devices/${deviceOf(input)}/commands`, {
    command: input.args["command"] ?? "",
    ...optional("from"),
    ...optional("to"),
    ...optional("confirm"),
  })
  return say(input, io, answer, `Queued as ${text(answer["id"])}; its result: schoolbus devices history ${text(input.args["serial"])}`)
}

export const history = async (input: Input, io: Io): Promise<number> => {
  const answer = await apiOf(input).get<Fields>(`/api/devices/${deviceOf(input)}/commands?limit=${input.number("limit")}`)
  if (input.flag("json")) return say(input, io, answer, "")
  const columns = ["Id", "Command", "State", "Attempts", "Queued", "Done", "Error"].map((title) => ({ title }))
  const rows = itemsOf(answer).map((row) => [
    text(row["id"]),
    text(row["command"]).slice(0, 60),
    text(row["status"]),
    text(row["attempts"]),
    text(row["createdAt"]),
    text(row["doneAt"]),
    text(row["error"]),
  ])
  io.out(rows.length === 0 ? "No command was ever queued.\n" : table(io.look, columns, rows))
  return EXIT.ok
}

export const exported = async (input: Input, io: Io): Promise<number> => {
  const query = new URLSearchParams()
  const serial = input.args["serial"]
  if (serial !== undefined) query.set("device", serial)
  for (const name of ["from", "to"]) {
    const value = input.textOr(name, null)
    if (value !== null) query.set(name, value)
  }
  const csv = await apiOf(input).csv(`/api/punches.csv?${query.toString()}`)
  const out = input.textOr("out", null)
  if (out === null) io.out(csv)
  else {
    await writeFile(out, csv)
    io.err(`${csv.split("\r\n").length - 2} punches written to ${out}\n`)
  }
  return EXIT.ok
}

export const sync = async (input: Input, io: Io): Promise<number> => {
  const answer = await apiOf(input).post<Fields>(`/api/devices/${deviceOf(input)}/sync-students`)
  io.out(input.flag("json") ? `${JSON.stringify(answer)}\n` : `${text(answer["message"] ?? "Full sync queued")}\n`)
  return EXIT.ok
}
