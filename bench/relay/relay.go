// A relay in Go to the public description of OpenAI's: SO_REUSEPORT sockets, each read by a goroutine that is
// locked to its thread, buffers allocated once, one read and one write per packet, flows in a map that only a
// STUN request adds to, nothing terminated.
//
//	relay PUBLIC_IP:PORT LINK_IP:PORT LINK_HEADER TRANSCEIVER_IP:PORT...
//
// The description does not say how a reply finds its client. Here, as in voicegate and in the C forwarder, one
// socket serves all transceivers and each datagram on it begins with LINK_HEADER (20 hexadecimal digits) and a
// frame header that names the client: one socket less to wake for and no socket per flow, so it is the
// cheapest way there is. A ufrag is the number of a transceiver; tickets, integrity and expiry are left out.
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"log"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
)

const (
	linkLength  = 10
	frameLength = 9
	headroom    = linkLength + frameLength
	bufferSize  = 2048
	socketBytes = 4 << 20
	reusePort   = 15 // SO_REUSEPORT; Go's syscall package does not name it on amd64
)

type relay struct {
	public, link *net.UDPConn
	header       []byte
	transceivers []netip.AddrPort
	lock         sync.RWMutex
	flows        map[netip.AddrPort]netip.AddrPort
}

func main() {
	if len(os.Args) < 5 {
		log.Fatal("usage: see the head of relay.go")
	}
	header, err := hex.DecodeString(os.Args[3])
	if err != nil || len(header) != linkLength {
		log.Fatal("LINK_HEADER is not 20 hexadecimal digits")
	}
	r := &relay{
		public: listen(os.Args[1]),
		link:   listen(os.Args[2]),
		header: header,
		flows:  make(map[netip.AddrPort]netip.AddrPort),
	}
	for _, text := range os.Args[4:] {
		r.transceivers = append(r.transceivers, netip.MustParseAddrPort(text))
	}
	go r.fromTransceivers()
	r.fromClients()
}

func listen(address string) *net.UDPConn {
	config := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
		var failed error
		err := conn.Control(func(fd uintptr) {
			failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, reusePort, 1)
		})
		if err != nil {
			return err
		}
		return failed
	}}
	conn, err := config.ListenPacket(context.Background(), "udp4", address)
	if err != nil {
		log.Fatal(err)
	}
	udp := conn.(*net.UDPConn)
	_ = udp.SetReadBuffer(socketBytes)
	_ = udp.SetWriteBuffer(socketBytes)
	return udp
}

func (r *relay) fromClients() {
	runtime.LockOSThread()
	buffer := make([]byte, headroom+bufferSize)
	copy(buffer, r.header)
	buffer[linkLength] = 4
	for {
		length, client, err := r.public.ReadFromUDPAddrPort(buffer[headroom:])
		if err != nil {
			continue
		}
		r.lock.RLock()
		transceiver, known := r.flows[client]
		r.lock.RUnlock()
		if !known {
			if transceiver, known = r.destination(buffer[headroom : headroom+length]); !known {
				continue
			}
			r.lock.Lock()
			r.flows[client] = transceiver
			r.lock.Unlock()
		}
		ip := client.Addr().As4()
		copy(buffer[linkLength+1:], ip[:])
		binary.BigEndian.PutUint16(buffer[linkLength+5:], client.Port())
		binary.BigEndian.PutUint16(buffer[linkLength+7:], uint16(length))
		_, _ = r.link.WriteToUDPAddrPort(buffer[:headroom+length], transceiver)
	}
}

func (r *relay) fromTransceivers() {
	runtime.LockOSThread()
	buffer := make([]byte, bufferSize)
	for {
		length, from, err := r.link.ReadFromUDPAddrPort(buffer)
		if err != nil || length < headroom || !bytes.Equal(buffer[:linkLength], r.header) {
			continue
		}
		ip := netip.AddrFrom4(*(*[4]byte)(buffer[linkLength+1:]))
		client := netip.AddrPortFrom(ip, binary.BigEndian.Uint16(buffer[linkLength+5:]))
		r.lock.RLock()
		transceiver, known := r.flows[client]
		r.lock.RUnlock()
		size := int(binary.BigEndian.Uint16(buffer[linkLength+7:]))
		if !known || transceiver != from || headroom+size != length {
			continue
		}
		_, _ = r.public.WriteToUDPAddrPort(buffer[headroom:length], client)
	}
}

// destination reads the transceiver's number from the start of USERNAME, the first attribute here.
func (r *relay) destination(data []byte) (netip.AddrPort, bool) {
	if len(data) < 26 || data[0] != 0 || data[1] != 1 || data[20] != 0 || data[21] != 6 {
		return netip.AddrPort{}, false
	}
	number := 0
	for _, digit := range data[24:] {
		if digit < '0' || digit > '9' {
			break
		}
		if number = number*10 + int(digit-'0'); number >= len(r.transceivers) {
			return netip.AddrPort{}, false
		}
	}
	return r.transceivers[number], true
}
