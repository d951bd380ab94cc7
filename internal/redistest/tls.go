package redistest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// StartTLS returns a server of the test's own that speaks TLS alone, under a
// certificate of an authority of its own, and wants a password.
func StartTLS(t testing.TB) *Server {
	t.Helper()
	dir := t.TempDir()
	cert, key, err := writeCertificate(dir)
	if err != nil {
		t.Fatal(err)
	}
	tlsPort, err := FreePort()
	if err != nil {
		t.Fatal(err)
	}
	const password = "a password/with: odd@characters?"
	s := own(t, "--tls-port", strconv.Itoa(tlsPort), "--port", "0", "--tls-auth-clients", "no",
		"--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert, "--requirepass", password)
	u := url.URL{
		Scheme: "rediss", User: url.UserPassword("default", password), Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(tlsPort)),
		RawQuery: url.Values{"ca_file": {cert}}.Encode(),
	}
	s.URL, s.Port = u.String(), tlsPort
	return s
}

// writeCertificate makes a certificate for 127.0.0.1 that vouches for itself.
func writeCertificate(dir string) (cert, key string, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "redistest"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &private.PublicKey, private)
	if err != nil {
		return "", "", err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return "", "", err
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for _, file := range []struct {
		name, kind string
		der        []byte
	}{{cert, "CERTIFICATE", der}, {key, "PRIVATE KEY", secret}} {
		block := pem.EncodeToMemory(&pem.Block{Type: file.kind, Bytes: file.der})
		if err := os.WriteFile(file.name, block, 0o600); err != nil {
			return "", "", err
		}
	}
	return cert, key, nil
}

// UserFile is where deploy/ keeps the user for the coordinator, seen from a
// package's directory one level below the root.
const UserFile = "../deploy/redis/users.acl"

// StartWithUsers returns a server of the test's own whose users are those of an ACL
// file, which come without a password and get one, and the URL of the user named.
// Server.URL itself is that of an administrator.
func StartWithUsers(t testing.TB, file, user string) (s *Server, userURL string) {
	t.Helper()
	acl, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const password = "workers"
	text := strings.ReplaceAll(string(acl), " resetpass ", " >"+password+" ") + "user admin on >admin ~* &* +@all\n"
	path := filepath.Join(t.TempDir(), "users.acl")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s = own(t, "--aclfile", path)
	host := "127.0.0.1:" + strconv.Itoa(s.Port)
	s.URL = (&url.URL{Scheme: "redis", User: url.UserPassword("admin", "admin"), Host: host}).String()
	return s, (&url.URL{Scheme: "redis", User: url.UserPassword(user, password), Host: host}).String()
}
