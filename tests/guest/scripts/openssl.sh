# openssl: digests, ciphers with fixed keys, key generation, signatures; all of its hand-written assembly.
# packages: openssl
# limit: 240
cd /tmp || exit 1
seq 1 50000 >data
for digest in md5 sha1 sha224 sha256 sha384 sha512 sha3-256 sha3-512 blake2b512 blake2s256 ripemd160 sm3; do
    echo "$digest $(openssl dgst -r -$digest data | cut -c1-40)"
done
key=000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f
iv=0f0e0d0c0b0a09080706050403020100
for cipher in aes-128-cbc aes-256-cbc aes-128-ctr aes-256-ctr aes-256-cfb aes-256-ofb camellia-256-cbc aria-256-cbc chacha20 sm4-cbc des-ede3-cbc; do
    case $cipher in *128*|sm4*) k=$(echo $key | cut -c1-32) ;; des*) k=$(echo $key | cut -c1-48) ;; *) k=$key ;; esac
    case $cipher in des*) v=$(echo $iv | cut -c1-16) ;; *) v=$iv ;; esac
    openssl enc -$cipher -K $k -iv $v -in data -out data.$cipher
    openssl enc -d -$cipher -K $k -iv $v -in data.$cipher | cmp - data && echo "$cipher $(sha256sum data.$cipher | cut -c1-24)"
done
echo "hmac $(openssl dgst -r -sha256 -mac HMAC -macopt hexkey:$key data | cut -c1-32)"
echo "cmac $(openssl mac -cipher aes-256-cbc -macopt hexkey:$key -in data CMAC)"
echo "gmac $(openssl mac -cipher AES-128-GCM -macopt hexkey:00112233445566778899aabbccddeeff -macopt hexiv:000102030405060708090a0b -in data GMAC)"
echo "poly1305 $(openssl mac -macopt hexkey:$key -in data Poly1305)"
echo "pbkdf2 $(openssl kdf -keylen 24 -kdfopt digest:SHA256 -kdfopt pass:secret -kdfopt salt:salty -kdfopt iter:5000 PBKDF2)"
echo "scrypt $(openssl kdf -keylen 24 -kdfopt pass:secret -kdfopt salt:salty -kdfopt n:1024 -kdfopt r:8 -kdfopt p:1 SCRYPT)"
openssl genrsa -out rsa.pem 2048 2>/dev/null
openssl rsa -in rsa.pem -pubout -out rsa.pub 2>/dev/null
openssl dgst -sha256 -sign rsa.pem -out sig data
openssl dgst -sha256 -verify rsa.pub -signature sig data
openssl rsa -in rsa.pem -check -noout 2>&1
for curve in prime256v1 secp384r1 secp521r1 secp256k1 brainpoolP256r1; do
    openssl ecparam -name $curve -genkey -noout -out ec.pem
    openssl ec -in ec.pem -pubout -out ec.pub 2>/dev/null
    openssl dgst -sha256 -sign ec.pem -out sig data
    echo "$curve $(openssl dgst -sha256 -verify ec.pub -signature sig data)"
done
for algorithm in ed25519 ed448; do
    openssl genpkey -algorithm $algorithm -out k.pem
    openssl pkey -in k.pem -pubout -out k.pub
    openssl pkeyutl -sign -inkey k.pem -rawin -in rsa.pub -out sig
    echo "$algorithm $(openssl pkeyutl -verify -pubin -inkey k.pub -rawin -in rsa.pub -sigfile sig)"
done
for algorithm in x25519 x448; do
    for side in a b; do
        openssl genpkey -algorithm $algorithm -out $side.pem
        openssl pkey -in $side.pem -pubout -out $side.pub
    done
    openssl pkeyutl -derive -inkey a.pem -peerkey b.pub -out s1
    openssl pkeyutl -derive -inkey b.pem -peerkey a.pub -out s2
    cmp s1 s2 && echo "$algorithm agrees"
done
openssl req -x509 -newkey rsa:2048 -nodes -keyout c.key -out c.pem -subj /CN=guest -days 30 2>/dev/null
openssl verify -CAfile c.pem c.pem
(openssl s_server -accept 4433 -key c.key -cert c.pem -rev -quiet 2>/dev/null & echo $! >pid)
# However slow the machine: the server listens before it is asked, and is not hung up on before it has answered.
n=0
while ! nc -z 127.0.0.1 4433 2>/dev/null && [ $n -lt 300 ]; do n=$((n + 1)) && sleep 0.2; done
: >answer
(
    echo "over tls"
    n=0
    while [ ! -s answer ] && [ $n -lt 300 ]; do n=$((n + 1)) && sleep 0.2; done
) | timeout 90 openssl s_client -connect 127.0.0.1:4433 -quiet -no_ign_eof -CAfile c.pem >answer 2>/dev/null
cat answer
kill "$(cat pid)"
openssl prime 170141183460469231731687303715884105727
exit 0
