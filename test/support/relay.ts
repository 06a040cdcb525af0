import { connect, createServer, type Server, type Socket } from "node:net"

/** A relay before a port. Frozen connections stay open and pass nothing, for ever; new ones work after `thaw`. */
export const startRelay = async (to: number) => {
  const sockets = new Set<Socket>()
  let frozen = false
  const server: Server = createServer((client) => {
    const upstream = connect(to, "127.0.0.1")
    const dead = { is: frozen }
    const pass = (from: Socket, into: Socket) => {
      sockets.add(from)
      from.on("data", (data) => {
        if (!dead.is) into.write(data)
      })
      from.on("close", () => {
        sockets.delete(from)
        if (!dead.is) into.destroy()
      })
      from.on("error", () => undefined)
    }
    pass(client, upstream)
    pass(upstream, client)
    deads.push(dead)
  })
  const deads: Array<{ is: boolean }> = []
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done))
  const address = server.address()
  return {
    port: typeof address === "object" && address !== null ? address.port : 0,
    freeze: () => {
      frozen = true
      for (const dead of deads) dead.is = true
    },
    thaw: () => {
      frozen = false
    },
    close: async () => {
      for (const socket of sockets) socket.destroy()
      await new Promise((done) => server.close(done))
    },
  }
}
