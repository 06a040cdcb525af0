/** A school node's device side on a real file: its tables, its queues, and the port that terminals call, spoken to byte by byte. */
import { readFileSync } from "node:fs"
import { connect } from "node:net"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import type { Device } from "../../src/iclock/device.ts"
import { Devices } from "../../src/iclock/devices.ts"
import { installRoster, Roster } from "../../src/iclock/fill.ts"
import { type FrontLimits, listenIclock } from "../../src/iclock/front.ts"
import { Commands } from "../../src/iclock/queue.ts"
import { Uploads } from "../../src/iclock/uploads.ts"
import { Libsql, type LibsqlFile, openFile } from "../../src/libsql/client.ts"
import type { Column, DeviceRules, Manifest, Table } from "../../src/model/table.ts"
import { kindOf } from "../../src/model/value.ts"
import { column, openSchoolFile, type SchoolFile, table } from "../support/school-file.ts"

const TYPES: Readonly<Record<string, readonly [typname: string, printed: string]>> = {
  text: ["text", "text"],
  integer: ["int4", "integer"],
  bigint: ["int8", "bigint"],
  uuid: ["uuid", "uuid"],
  timestamptz: ["timestamptz", "timestamp with time zone"],
}

/** The built-in tables as `sql/hub/0002_devices.sql` makes them. */
export const deviceTables = (): ReadonlyArray<Table> => {
  const sql = readFileSync(new URL("../../sql/hub/0002_devices.sql", import.meta.url), "utf8")
  return [...sql.matchAll(/CREATE TABLE schoolbus\.(\w+) \((.*?)\n\);/gs)].map(([, name = "", body = ""]) => {
    const columns: Array<Column> = []
    for (const [, col = "", type = "", rest = ""] of body.matchAll(/^ {2}([a-z_]+) +(text|integer|bigint|uuid|timestamptz)\b(.*)$/gm)) {
      const [typname, printed] = TYPES[type] ?? ["text", "text"]
      columns.push({ name: col, kind: kindOf(typname), type: printed, notNull: /NOT NULL|PRIMARY KEY/.test(rest), generated: false })
    }
    const names = (text: string | undefined) => (text ?? "").split(",").map((part) => part.trim())
    const key = /PRIMARY KEY \(([^)]*)\)/.exec(body)?.[1]
    return {
      ...table(name, columns),
      name: `schoolbus.${name}`,
      key: key === undefined ? ["id"] : names(key),
      unique: [...body.matchAll(/UNIQUE \(([^)]*)\)/g)].map((match) => names(match[1])),
      audience: { column: "school" },
      direction: ["devices", "device_user_mappings"].includes(name) ? "both" : "up",
    }
  })
}

export const timestamptzType = "timestamp with time zone"

export const students = table("students", [
  column("id", "text", { type: "uuid", notNull: true }),
  column("school_id", "text", { notNull: true }),
  column("full_name", "text", { notNull: true }),
  column("class_id", "text"),
  column("rfid_card_id", "text"),
  column("is_active", "bool"),
])
export const attendance = table(
  "attendance",
  [
    column("id", "text", { type: "uuid", notNull: true }),
    column("school_id", "text", { notNull: true }),
    column("student_id", "text", { type: "uuid", notNull: true }),
    column("class_id", "text"),
    column("punched_at", "text", { type: timestamptzType, notNull: true }),
  ],
  { references: [{ columns: ["student_id"], table: "public.students", to: ["id"] }] },
)
export const rules: DeviceRules = {
  people: { "public.students": { id: "id", name: "full_name", card: "rfid_card_id", active: "is_active", group: "class_id" } },
  attendance: { table: "public.attendance", person: "student_id", at: "punched_at" },
}

export interface Node {
  readonly school: SchoolFile
  readonly port: number
  readonly devices: Context.Service.Shape<typeof Devices>
  readonly commands: Context.Service.Shape<typeof Commands>
  readonly roster: Context.Service.Shape<typeof Roster>
  readonly run: <A, E>(effect: Effect.Effect<A, E>) => Promise<A>
  /** Sends bytes as they are; what came back until the connection ended. `end: false` leaves our half open. */
  readonly send: (bytes: string | Uint8Array, end?: boolean) => Promise<Buffer>
  readonly get: (path: string) => Promise<Reply>
  readonly post: (path: string, body: string | Uint8Array) => Promise<Reply>
  readonly rows: (sql: string) => ReadonlyArray<ReadonlyArray<unknown>>
  readonly approve: (serial: string, zone?: string) => Promise<Device>
  /** SQL of a school program, on a connection of its own that does not hold up this thread. */
  readonly program: (sql: string, args?: ReadonlyArray<string | number | null>) => Promise<void>
  readonly student: (name: string, more?: { readonly card?: string | null; readonly active?: boolean; readonly classId?: string }) => Promise<string>
  readonly close: () => Promise<void>
}

export interface Reply {
  readonly status: number
  readonly head: string
  readonly body: string
}

export const parseReply = (bytes: Buffer): Reply => {
  const end = bytes.indexOf("\r\n\r\n")
  const head = bytes.subarray(0, end).toString("latin1")
  return { status: Number(head.split(" ")[1]), head, body: bytes.subarray(end + 4).toString("utf8") }
}

export const sendTo = (port: number, bytes: string | Uint8Array, end = false): Promise<Buffer> =>
  new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1")
    const chunks: Array<Buffer> = []
    socket.on("data", (chunk) => chunks.push(chunk as Buffer))
    socket.on("error", () => undefined)
    socket.on("close", () => resolve(Buffer.concat(chunks)))
    if (end) socket.end(bytes)
    else socket.write(bytes)
  })

/** The device services and the terminals' port of one school file, in the caller's scope. */
export const serveFile = async (file: LibsqlFile, scope: Scope.Scope, limits?: FrontLimits) => {
  const layer = Layer.merge(Roster.layer, Uploads.layer).pipe(
    Layer.provideMerge(Commands.layer),
    Layer.provideMerge(Devices.layer),
    Layer.provideMerge(Layer.succeed(Libsql, file)),
  )
  const context = await Effect.runPromise(Scope.provide(Layer.build(layer), scope))
  const { port } = await Effect.runPromise(
    Scope.provide(Effect.provideContext(listenIclock({ port: 0, host: "127.0.0.1", ...(limits === undefined ? {} : { limits }) }), context), scope),
  )
  return { devices: Context.get(context, Devices), commands: Context.get(context, Commands), roster: Context.get(context, Roster), port }
}

export interface NodeOptions {
  readonly tables?: ReadonlyArray<Table>
  readonly devices?: DeviceRules
  /** False: a node that has not met its hub yet. */
  readonly ready?: boolean
  readonly limits?: FrontLimits
}

export const openNode = async (options: NodeOptions = {}): Promise<Node> => {
  const school = await openSchoolFile([], { install: false })
  const manifest: Manifest = {
    version: 1,
    school: { id: "s1", name: "One" },
    tables: [...deviceTables(), ...(options.tables ?? [students, attendance])],
    devices: options.devices ?? rules,
  }
  if (options.ready !== false) {
    await school.install(manifest)
    await school.write((tx) => Effect.andThen(tx.run("UPDATE schoolbus_state SET school = 's1', cut = '1'"), installRoster(tx, manifest)))
  }
  const scope = Scope.makeUnsafe()
  const { devices, commands, roster, port } = await serveFile(school.file, scope, options.limits)
  const run = <A, E>(effect: Effect.Effect<A, E>) => Effect.runPromise(effect)
  const own = await run(Scope.provide(openFile(school.path), scope))
  const program: Node["program"] = (sql, args) => run(own.write((tx) => Effect.asVoid(tx.run(sql, args))))
  const send = (bytes: string | Uint8Array, end?: boolean) => sendTo(port, bytes, end)
  return {
    school,
    port,
    devices,
    commands,
    roster,
    run,
    send,
    get: async (path) =>
      parseReply(
        await send(`GET ${path} HTTP/1.1\r\nHost: 10.20.0.5:8081\r\nUser-Agent: iClock Proxy/1.09\r\nConnection: close\r\nAccept: */*\r\n\r\n`),
      ),
    post: async (path, body) => {
      const bytes = Buffer.from(body as string)
      const head = `POST ${path} HTTP/1.1\r\nHost: 10.20.0.5:8081\r\nContent-Type: text/plain\r\nContent-Length: ${bytes.length}\r\n\r\n`
      return parseReply(await send(Buffer.concat([Buffer.from(head), bytes])))
    },
    rows: (sql) => school.read(sql),
    approve: async (serial, zone = "Africa/Nairobi") => {
      const device = await run(devices.approve(serial, { zone }))
      await run(roster.settle)
      return device
    },
    program,
    student: async (name, more = {}) => {
      const id = crypto.randomUUID()
      const { card = "1234567", active = true, classId = "c1" } = more
      await program("INSERT INTO students (id, school_id, full_name, class_id, rfid_card_id, is_active) VALUES (?,'s1',?,?,?,?)", [
        id,
        name,
        classId,
        card,
        active ? 1 : 0,
      ])
      return id
    },
    close: async () => {
      await run(Scope.close(scope, Exit.void))
      await school.close()
    },
  }
}
