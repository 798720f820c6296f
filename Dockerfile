FROM python:3.12-slim
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
ENV PARETOSCOPE_HOME=/data GRADIO_SERVER_NAME=0.0.0.0
VOLUME /data
EXPOSE 7860
CMD ["sh", "-c", "python -m backend.assets && exec python app.py"]
