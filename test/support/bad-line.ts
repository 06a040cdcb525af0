/** A line between a school and its hub that can be made worse: slow, cut by bytes or time, buffered, silent. It counts what passes. */
import { createServer, type AddressInfo, connect, type Socket } from "node:net"

/** A slow line hands on so much at once. */
const PACKET_BYTES = 2048

export interface BadLine {
  readonly url: string
  /** Of all connections so far, from the hub. */
  readonly received: () => number
  readonly connections: () => number
  /** Each connection breaks after so many bytes from the hub; null = never. */
  cutAfter: number | null
  /** Each connection breaks so long after it was made; null = never. */
  cutAfterMs: number | null
  /** Of all connections together, from the hub; null = as they come. */
  bytesPerSecond: number | null
  /** Bytes of a stream are kept until so many are there, as some proxies do; 0 = none. Answers that end are handed on. */
  holdBytes: number
  /** Nothing passes any more, in neither direction, and nobody is told. */
  silent: boolean
  readonly close: () => void
}

export const openBadLine = async (hub: string): Promise<BadLine> => {
  const { hostname, port } = new URL(hub)
  const sockets = new Set<Socket>()
  let received = 0
  let connections = 0
  /** When the slow line is free again. */
  let freeAt = 0
  const server = createServer((school) => {
    connections++
    const office = connect({ host: hostname, port: Number(port) })
    let held: Array<Buffer> = []
    let heldBytes = 0
    let passed = 0
    let isStream = false
    const end = line.cutAfterMs === null ? undefined : setTimeout(() => office.destroy(), line.cutAfterMs)
    for (const socket of [school, office]) {
      sockets.add(socket)
      socket.on("error", () => undefined)
      socket.on("close", () => {
        sockets.delete(socket)
        clearTimeout(end)
        school.destroy()
        office.destroy()
      })
    }
    school.on("data", (data: Buffer) => {
      if (data.includes(" /api/sync/")) isStream = data.includes(" /api/sync/stream?")
      if (!line.silent) office.write(data)
    })
    office.on("data", (data: Buffer) => {
      if (line.silent) return
      held.push(data)
      heldBytes += data.length
      if (isStream && heldBytes < line.holdBytes) return
      const all = Buffer.concat(held)
      held = []
      heldBytes = 0
      const room = line.cutAfter === null ? all.length : Math.min(all.length, line.cutAfter - passed)
      passed += room
      const give = (from: number, to: number): void => {
        received += to - from
        if (!school.write(all.subarray(from, to))) {
          office.pause()
          school.once("drain", () => office.resume())
        }
        if (to === room && room < all.length) school.end()
      }
      const { bytesPerSecond } = line
      if (bytesPerSecond === null) return give(0, room)
      office.pause()
      const next = (from: number): void => {
        if (school.destroyed) return
        if (from >= room) return void office.resume()
        const to = Math.min(room, from + PACKET_BYTES)
        const now = performance.now()
        freeAt = Math.max(freeAt, now) + (1000 * (to - from)) / bytesPerSecond
        setTimeout(() => {
          if (school.destroyed) return
          give(from, to)
          next(to)
        }, freeAt - now)
      }
      next(0)
    })
    office.on("end", () => school.end())
    school.on("end", () => office.end())
  })
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  const line: BadLine = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    received: () => received,
    connections: () => connections,
    cutAfter: null,
    cutAfterMs: null,
    bytesPerSecond: null,
    holdBytes: 0,
    silent: false,
    close: () => {
      for (const socket of sockets) socket.destroy()
      server.close()
    },
  }
  return line
}
