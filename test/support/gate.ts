/** A TCP proxy that can withhold: what passes, and from where on a direction stands still, is for the test to say. */
import { connect, createServer, type Socket } from "node:net"

export interface Piece {
  /** From the one who dialled. */
  readonly up: boolean
  readonly bytes: Buffer
  /** The first piece that came up on this connection. */
  readonly first: Buffer
}

/** How many bytes of the piece may pass; fewer than it has: this direction of this connection then stands still. */
export type Rule = (piece: Piece) => number

export interface Gate {
  readonly port: number
  /** Connections from now on go there. */
  readonly target: (port: number) => void
  readonly rule: (rule: Rule) => void
  /** Everything passes again, also what was withheld. */
  readonly open: () => void
  /** A direction of some connection stands still. */
  readonly holds: () => boolean
  readonly close: () => Promise<void>
}

const pass: Rule = ({ bytes }) => bytes.length

export const openGate = async (): Promise<Gate> => {
  let to = 0
  let rule = pass
  const sockets = new Set<Socket>()
  const withheld = new Map<Socket, Array<Buffer>>()
  const server = createServer((inner) => {
    const outer = connect(to, "127.0.0.1")
    let first: Buffer | null = null
    const forward = (from: Socket, target: Socket, up: boolean): void => {
      sockets.add(from)
      from.on("data", (bytes: Buffer) => {
        if (up) first ??= bytes
        const queue = withheld.get(target)
        if (queue !== undefined) return void queue.push(bytes)
        const may = rule({ up, bytes, first: first ?? Buffer.alloc(0) })
        if (may > 0) target.write(bytes.subarray(0, may))
        if (may < bytes.length) withheld.set(target, [bytes.subarray(may)])
      })
      from.on("error", () => from.destroy())
      from.on("close", () => {
        sockets.delete(from)
        withheld.delete(from)
        target.destroy()
      })
    }
    forward(inner, outer, true)
    forward(outer, inner, false)
  })
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  const address = server.address()
  return {
    port: typeof address === "object" && address !== null ? address.port : 0,
    target: (port) => {
      to = port
    },
    rule: (next) => {
      rule = next
    },
    open: () => {
      rule = pass
      for (const [target, queue] of withheld) for (const bytes of queue) target.write(bytes)
      withheld.clear()
    },
    holds: () => withheld.size > 0,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve())
        for (const socket of sockets) socket.destroy()
      }),
  }
}
