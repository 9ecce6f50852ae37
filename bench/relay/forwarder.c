/* A relay in C as one would write it for speed: one thread, one hash table, 64 datagrams per system call.
 *
 *     forwarder PUBLIC_IP PUBLIC_PORT LINK_IP LINK_PORT LINK_HEADER TRANSCEIVER_IP:PORT...
 *
 * It does for a packet what voicegate's relay does and no more: the flow is looked up by the client's address,
 * link header and frame header are written in front of the payload, and one datagram goes to the transceiver;
 * the way back takes them off and sends to the client that they name, if it has a flow. A STUN request makes a
 * flow, to the transceiver whose number is its ufrag. LINK_HEADER is 20 hexadecimal digits and stands in both
 * directions. What it leaves out: tickets, integrity, the rules about who may take a flow, expiry, statistics. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BATCH = 64, SLOT = 2048, HEADROOM = 32, LINK = 10, FRAME = 9, TABLE = 1 << 18, MAX_TRANSCEIVERS = 64 };

struct flow { uint32_t ip; uint16_t port, used; uint32_t transceiver; };

static struct flow table[TABLE];
static struct sockaddr_in transceivers[MAX_TRANSCEIVERS];
static int transceiver_count;
static uint8_t link_header[LINK];
static uint8_t memory[BATCH][HEADROOM + SLOT];
static struct sockaddr_in names[BATCH];
static struct iovec incoming[BATCH], outgoing[BATCH];
static struct mmsghdr received[BATCH], sending[BATCH];

static struct flow *slot_of(uint32_t ip, uint16_t port) {
    uint64_t hash = ((uint64_t)ip << 16 | port) * 0x9e3779b97f4a7c15ull;
    uint32_t place = hash >> 46;
    while (table[place].used && (table[place].ip != ip || table[place].port != port)) place = (place + 1) % TABLE;
    return &table[place];
}

/* The number at the start of USERNAME, which is the first attribute here; -1: not a request that names one. */
static int destination(const uint8_t *data, uint32_t length) {
    if (length < 26 || data[0] != 0 || data[1] != 1 || data[20] != 0 || data[21] != 6) return -1;
    int number = 0;
    for (uint32_t at = 24; at < length && data[at] >= '0' && data[at] <= '9'; at++)
        if ((number = number * 10 + data[at] - '0') >= transceiver_count) return -1;
    return number;
}

static int receive(int sock) {
    for (int index = 0; index < BATCH; index++) received[index].msg_hdr.msg_namelen = sizeof *names;
    int count = recvmmsg(sock, received, BATCH, MSG_DONTWAIT, NULL);
    return count > 0 ? count : 0;
}

static void queue(int place, const struct sockaddr_in *name, uint8_t *start, uint32_t length) {
    outgoing[place] = (struct iovec){start, length};
    sending[place].msg_hdr = (struct msghdr){(void *)name, sizeof *name, &outgoing[place], 1, NULL, 0, 0};
}

static void transmit(int sock, int count) {
    for (int done = 0; done < count;) {
        int sent = sendmmsg(sock, sending + done, count - done, MSG_DONTWAIT);
        done += sent > 0 ? sent : 1;
    }
}

static void from_clients(int public, int link) {
    int count = receive(public), used = 0;
    for (int index = 0; index < count; index++) {
        uint8_t *data = memory[index] + HEADROOM, *start = data - LINK - FRAME;
        uint32_t length = received[index].msg_len;
        struct sockaddr_in *name = &names[index];
        struct flow *flow = slot_of(name->sin_addr.s_addr, name->sin_port);
        if (!flow->used) {
            int number = destination(data, length);
            if (number < 0) continue;
            *flow = (struct flow){name->sin_addr.s_addr, name->sin_port, 1, number};
        }
        uint16_t network_length = htons(length);
        memcpy(start, link_header, LINK);
        start[LINK] = 4;
        memcpy(start + LINK + 1, &name->sin_addr, 4);
        memcpy(start + LINK + 5, &name->sin_port, 2);
        memcpy(start + LINK + 7, &network_length, 2);
        queue(used++, &transceivers[flow->transceiver], start, LINK + FRAME + length);
    }
    transmit(link, used);
}

static void from_transceivers(int link, int public) {
    static struct sockaddr_in clients[BATCH];
    int count = receive(link), used = 0;
    for (int index = 0; index < count; index++) {
        uint8_t *data = memory[index] + HEADROOM;
        uint32_t length = received[index].msg_len, ip;
        uint16_t port, payload;
        if (length < LINK + FRAME || memcmp(data, link_header, LINK) || data[LINK] != 4) continue;
        memcpy(&ip, data + LINK + 1, 4);
        memcpy(&port, data + LINK + 5, 2);
        memcpy(&payload, data + LINK + 7, 2);
        struct flow *flow = slot_of(ip, port);
        struct sockaddr_in *owner = &transceivers[flow->transceiver];
        if (!flow->used || (uint32_t)(LINK + FRAME + ntohs(payload)) != length) continue;
        if (owner->sin_addr.s_addr != names[index].sin_addr.s_addr || owner->sin_port != names[index].sin_port) continue;
        clients[used] = (struct sockaddr_in){AF_INET, port, {ip}, {0}};
        queue(used, &clients[used], data + LINK + FRAME, ntohs(payload));
        used++;
    }
    transmit(public, used);
}

static int open_udp(const char *ip, const char *port) {
    struct sockaddr_in own = {AF_INET, htons(atoi(port)), {inet_addr(ip)}, {0}};
    int sock = socket(AF_INET, SOCK_DGRAM, 0), size = 4 << 20, on = 1;
    setsockopt(sock, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    setsockopt(sock, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    setsockopt(sock, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    if (sock < 0 || bind(sock, (struct sockaddr *)&own, sizeof own)) {
        perror(port);
        exit(1);
    }
    return sock;
}

int main(int count, char **arguments) {
    if (count < 7 || count - 6 > MAX_TRANSCEIVERS || strlen(arguments[5]) != 2 * LINK) {
        fprintf(stderr, "usage: see the head of forwarder.c\n");
        return 2;
    }
    struct pollfd sockets[2] = {{.events = POLLIN}, {.events = POLLIN}};
    sockets[0].fd = open_udp(arguments[1], arguments[2]);
    sockets[1].fd = open_udp(arguments[3], arguments[4]);
    for (int index = 0; index < LINK; index++) sscanf(arguments[5] + 2 * index, "%2hhx", &link_header[index]);
    for (int index = 6; index < count; index++) {
        char *colon = strchr(arguments[index], ':');
        if (!colon) return 2;
        *colon = 0;
        struct in_addr ip = {inet_addr(arguments[index])};
        transceivers[transceiver_count++] = (struct sockaddr_in){AF_INET, htons(atoi(colon + 1)), ip, {0}};
    }
    for (int index = 0; index < BATCH; index++) {
        incoming[index] = (struct iovec){memory[index] + HEADROOM, SLOT};
        received[index].msg_hdr = (struct msghdr){&names[index], sizeof *names, &incoming[index], 1, NULL, 0, 0};
    }
    for (;;) {
        if (poll(sockets, 2, -1) < 0 && errno != EINTR) return 1;
        if (sockets[0].revents) from_clients(sockets[0].fd, sockets[1].fd);
        if (sockets[1].revents) from_transceivers(sockets[1].fd, sockets[0].fd);
    }
}
